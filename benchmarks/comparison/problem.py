"""The weights and data of a task as numpy arrays, the same in every environment.

Only numpy is imported here, and torch where a torch object is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison.tasks import INPUTS, Task

if TYPE_CHECKING:
    import torch

IMAGE = (3, 32, 32)


@dataclass(frozen=True)
class Problem:
    """A task with its network and samples.

    `x` is float32 [n, 784], or [n, 3, 32, 32] for images; `y` int64 [n]; `weights` float32 [out, in] of each layer of
    the MLP; `state` the arrays of the other networks by their name in torch's state_dict. What `in_float64` returns has
    float64 instead.
    """

    task: Task
    x: np.ndarray
    y: np.ndarray
    weights: list[np.ndarray] = field(default_factory=list)
    state: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def layer(self) -> int:
        """Index of the layer that "layer_kernel" and "top_eigenvalue" mean."""
        return self.task.layer

    @property
    def targets(self) -> np.ndarray:
        """The labels of an alignment: one-hot [n, o] in x's dtype, and for one output the label itself, 0 or 1."""
        if self.task.outputs == 1:
            return self.y[:, None].astype(self.x.dtype)
        return np.eye(self.task.outputs, dtype=self.x.dtype)[self.y]

    def in_float64(self) -> Problem:
        """The same numbers in float64, which is then the dtype of everything that is made from them."""

        def double(array: np.ndarray) -> np.ndarray:
            return array.astype(np.float64) if array.dtype == np.float32 else array

        state = {name: double(array) for name, array in self.state.items()}
        return replace(self, x=double(self.x), weights=[double(one) for one in self.weights], state=state)

    def of_samples(self, count: int) -> Problem:
        """The same network, with the first samples alone."""
        task = replace(self.task, n=min(count, self.task.n))
        return replace(self, task=task, x=self.x[: task.n], y=self.y[: task.n])

    @property
    def nbytes(self) -> int:
        """The size of network and samples."""
        return sum(array.nbytes for array in (self.x, self.y, *self.weights, *self.state.values()))

    def torch_model(self) -> torch.nn.Module:
        """The network in eval mode, on the task's device; an nn.Sequential for the MLP."""
        import torch

        if self.task.network == "resnet18":
            model = _resnet18(self.task.outputs).to(torch.tensor(self.x[:0]).dtype)
            model.load_state_dict({name: torch.tensor(array) for name, array in self.state.items()})
            return model.eval().to(self.task.device)
        layers: list[torch.nn.Module] = []
        for weight in self.weights:
            linear = torch.nn.Linear(*weight.shape[::-1], bias=False, device="meta")
            linear.weight = torch.nn.Parameter(torch.tensor(weight, device=self.task.device))
            layers += [linear, torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1]).eval()

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y (class indices) on the task's device."""
        import torch

        return torch.tensor(self.x, device=self.task.device), torch.tensor(self.y, device=self.task.device)

    def target_tensor(self) -> torch.Tensor:
        """`targets` on the task's device."""
        import torch

        return torch.tensor(self.targets, device=self.task.device)

    def save(self, path: Path) -> None:
        weights = {f"weight/{index}": weight for index, weight in enumerate(self.weights)}
        state = {f"state/{name}": array for name, array in self.state.items()}
        np.savez(path, x=self.x, y=self.y, **weights, **state)


def load(path: Path, task: Task) -> Problem:
    """The problem that `save` wrote."""
    with np.load(path) as arrays:
        weights = [arrays[f"weight/{index}"] for index in range(sum(name.startswith("weight/") for name in arrays))]
        state = {name[len("state/") :]: arrays[name] for name in arrays if name.startswith("state/")}
        return Problem(task, arrays["x"], arrays["y"], weights, state)


def make(task: Task) -> Problem:
    """The problem of a task, from its seed alone: noise around a template for each class, He initialisation."""
    generator = np.random.default_rng(task.seed)
    inputs = int(np.prod(IMAGE)) if task.network == "resnet18" else INPUTS
    classes = max(task.outputs, 2)
    templates = generator.random((classes, inputs), dtype=np.float32)
    y = np.arange(task.n) % classes
    x = 0.5 * templates[y] + 0.5 * generator.random((task.n, inputs), dtype=np.float32)
    if task.network == "resnet18":
        state = {name: value.numpy() for name, value in _resnet18(task.outputs, task.seed).state_dict().items()}
        return Problem(task, x.reshape(-1, *IMAGE), y, state=state)
    weights = []
    for shape in task.shapes:
        weight = generator.standard_normal(shape, dtype=np.float32)
        weight *= np.float32((2 / shape[1]) ** 0.5)
        weights.append(weight)
    return Problem(task, x, y, weights)


def _resnet18(outputs: int, seed: int = 0) -> torch.nn.Module:
    """The network of the experiments, whose module needs torch alone."""
    from experiments.common import vision

    return vision.resnet18(outputs, seed)
