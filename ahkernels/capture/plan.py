"""The plan of a capture: its checked arguments, and how each layer will be captured, before any of the work is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ahkernels.capture.certificate import require_determined
from ahkernels.capture.guard import check_input, refuse_modules, unchanged
from ahkernels.capture.run import PlannedLayer, iter_factors, plan_layers
from ahkernels.capture.selection import Layers, select_layers
from ahkernels.capture.trace import trace_model
from ahkernels.capture.twin import Twin
from ahkernels.kernel import TangentKernel, kernel_of_outputs
from ahkernels.outputs import Outputs, OutputSelection
from ahkernels.precision import resolve_precision

_FORWARD_CHUNK = 1024  # samples in a forward pass without gradients


@dataclass(frozen=True)
class CapturePlan:
    """A capture whose arguments have been checked.

    Attributes:
        model: The network.
        x: Its inputs [n, ...].
        layers: The layers to capture and their routes, in forward order.
        groups: The name of each kernel and the names of its layers, in forward order.
        outputs: The outputs that enter the kernels.
        precision: "highest", "high" or "medium".
        memory_budget: Bytes of factors that one pass may capture.
        progress: Whether to show a progress bar on stderr.
    """

    model: nn.Module
    x: Tensor
    layers: list[PlannedLayer]
    groups: dict[str, list[str]]
    outputs: OutputSelection
    precision: str
    memory_budget: int
    progress: bool

    def kernels(self) -> Iterator[tuple[str, TangentKernel]]:
        """Yields (name, kernel) in forward order, without searching the factors for nan and inf."""
        groups = iter_factors(self.model, self.x, self.layers, self.groups, self.outputs, self.memory_budget)
        with tqdm(total=len(self.groups), desc="layers", unit="layer", disable=not self.progress) as bar:
            for name, factors in groups:
                yield name, kernel_of_outputs(factors, self.outputs, self.precision, name)
                bar.update()

    def logits(self) -> Tensor:
        """Computes f(x) [n, o], a chunk of samples at a time."""
        chunks = []
        for samples in torch.split(self.x, _FORWARD_CHUNK):
            with unchanged(self.x), torch.no_grad():
                chunks.append(Twin(self.model).model(samples))
        return torch.cat(chunks)


def plan_capture(
    model: nn.Module,
    x: Tensor,
    *,
    layers: Layers,
    outputs: Outputs,
    precision: str | None,
    memory_budget: int,
    keep_factors: bool,
    progress: bool,
) -> CapturePlan:
    """Checks the arguments of `iter_tangent_kernels`, and runs a twin of the model on a few samples.

    Args:
        model: See `tangent_kernels`, as for all arguments.
        x: Inputs [n, ...].
        layers: Names, patterns or groups of layers, or None.
        outputs: The outputs that enter the kernels.
        precision: A precision or None.
        memory_budget: Bytes of factors that one pass may capture.
        keep_factors: Whether the factors are kept also where the Jacobian is smaller.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The plan.

    Raises:
        ValueError: If an argument is out of range or does not fit the model; the message names it.
        TypeError: If an argument has another type; the message names it.
    """
    _check_budget(memory_budget)
    precision = resolve_precision(precision)
    selected = select_layers(model, layers)
    check_input(model, x)
    refuse_modules(model)
    if torch.is_autocast_enabled(x.device.type):
        raise ValueError(
            "model: expected a call outside of torch.autocast, got one under it; measure outside of the autocast "
            "region, in the dtype of the parameters"
        )
    if x.is_inference():  # autograd takes no tensors of inference mode
        with torch.inference_mode(False):
            x = x.clone()
    with unchanged(x):
        trace = trace_model(model, x, selected.layers)
    require_determined(model, x)
    selection = OutputSelection(outputs, trace.outputs)
    planned = plan_layers(model, x.shape[0], trace.layers, selection, memory_budget, keep_factors=keep_factors)
    groups = _in_forward_order(selected.groups, [layer.name for layer in planned])
    return CapturePlan(model, x.detach(), planned, groups, selection, precision, memory_budget, progress)


def _in_forward_order(groups: dict[str, list[str]], layers: Sequence[str]) -> dict[str, list[str]]:
    """Sorts the layers of each group, and the groups by their first layer."""
    place = {name: index for index, name in enumerate(layers)}
    members = {name: sorted(group, key=place.__getitem__) for name, group in groups.items()}
    return dict(sorted(members.items(), key=lambda item: place[item[1][0]]))


def _check_budget(memory_budget: int) -> None:
    if isinstance(memory_budget, bool) or not isinstance(memory_budget, int):
        raise TypeError(f"memory_budget: expected a number of bytes, got {memory_budget!r}")
    if memory_budget <= 0:
        raise ValueError(f"memory_budget: expected a positive number of bytes, got {memory_budget}")
