"""The alignment of every layer by NNGeometry with its centering switched on, as a job for comparison/worker.py.

The networks are here as well, since the runner and the environment that has NNGeometry both build them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import Task

CHANNELS = 8  # of the convolutional network, whose images have one channel of 28 x 28


def network(task: Task) -> nn.Sequential:
    """The network of a task, with biases and in eval mode; its parameters are to be loaded, or drawn."""
    if task.network == "convolutional":  # stride, padding, pooling, and a layer without a bias
        layers: list[nn.Module] = [nn.Unflatten(1, (1, 28, 28))]
        layers += [nn.Conv2d(1, CHANNELS, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2), nn.ReLU()]
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 2, bias=False), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(25 * CHANNELS, task.outputs)]
    else:
        sizes = [784, *[task.width] * (task.depth - 1), task.outputs]
        layers = [layer for one, other in pairwise(sizes) for layer in (nn.Linear(one, other), nn.ReLU())][:-1]
    return nn.Sequential(*layers).eval()


def network_of(problem: Problem) -> nn.Sequential:
    """The network with the problem's parameters, in the numbers of its arrays: float32 or float64."""
    model = network(problem.task).to(torch.from_numpy(problem.x).dtype)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in problem.state.items()})
    return model


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules with parameters of their own, by name."""
    return {name: one for name, one in model.named_modules() if next(one.parameters(recurse=False), None) is not None}


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    """Alignments in the order of `layers_of`."""
    model, (x, y), kernel = network_of(problem), problem.tensors(), KERNELS[variant]
    target = torch.nn.functional.one_hot(y, problem.task.outputs).double()
    target -= target.mean(0)

    def job() -> np.ndarray:
        # NNGeometry makes its matrix I - 11^T/n in torch's default numbers, whatever the kernel's are.
        torch.set_default_dtype(x.dtype)
        return np.array([alignment(kernel(model, layer, x, y), target) for layer in layers_of(model).values()])

    return job


def alignment(k: torch.Tensor, target: torch.Tensor) -> float:
    """The alignment of K [o, n, o, n] with y~ [n, o] by NNGeometry's own products and norm."""
    from nngeometry.object import FMatDense, FVector

    # In float64, since the norm of so many float32 numbers can be off by more than is tolerated of an alignment.
    kernel, vector = FMatDense(generator=None, data=k.double()), FVector(vector_repr=target.T.contiguous())
    return float(kernel.vTMv(vector) / (kernel.frobenius_norm() * target.square().sum()))


def kernel_of_centered_jacobian(model: nn.Module, layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """J J^T of the Jacobian [o, n, numbers] that NNGeometry has centered."""
    from nngeometry.object import PFMapDense

    j = PFMapDense(generator=generator(model, layer), examples=(x, y)).to_torch()
    o, n, _ = j.shape
    rows = j.flatten(0, 1)
    return (rows @ rows.T).view(o, n, o, n)


def centered_kernel(model: nn.Module, layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The kernel that NNGeometry forms first and then centers, as the paper's authors had it do."""
    from nngeometry.object import FMatDense

    return FMatDense(generator=generator(model, layer), examples=(x, y)).to_torch()


def generator(model: nn.Module, layer: nn.Module) -> object:
    """NNGeometry's generator of one layer's Jacobian, weight and bias together, with its centering."""
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection

    layers = LayerCollection()
    layers.add_layer_from_model(model, layer)
    return TorchHooksJacobianBackend(model, centering=True, layer_collection=layers)


KERNELS = {"centered Jacobian": kernel_of_centered_jacobian, "centered kernel": centered_kernel}
VARIANTS = tuple(KERNELS)
