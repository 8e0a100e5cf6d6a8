"""Tangent kernels of the layers of a model: all at once, or one after the other within a memory budget."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ahkernels.capture.call import copied_buffers
from ahkernels.capture.guard import check_input, refuse_modules, unchanged
from ahkernels.capture.run import DEFAULT_MEMORY_BUDGET, PlannedLayer, iter_factors, plan_layers
from ahkernels.capture.selection import Layers, select_layers
from ahkernels.capture.trace import trace_model
from ahkernels.kernel import TangentKernel, kernel_of_outputs
from ahkernels.outputs import Outputs, OutputSelection
from ahkernels.precision import resolve_precision

_FORWARD_CHUNK = 1024  # samples in a forward pass without gradients


def tangent_kernels(
    model: nn.Module,
    x: Tensor,
    *,
    layers: Layers = None,
    outputs: Outputs = "all",
    precision: str | None = None,
    memory_budget: int | None = None,
    keep_factors: bool = False,
    progress: bool = False,
) -> dict[str, TangentKernel]:
    """The tangent kernel of each layer or group by name, in forward order; they hold all their factors.

    Args:
        model: A network whose samples are independent given its parameters, f(x) of shape [n, o].
        x: Inputs [n, ...].
        layers: Names or patterns ("fc*") of layers; None for all that have parameters. {group: names or patterns} for
            the kernels of groups of layers, which are the sums of theirs: {"all": "*"} is the kernel of the network.
        outputs: "all", "trace", "sum", an index or a sequence of indices: see `OutputSelection`.
        precision: "highest", "high", "medium"; None for torch.get_float32_matmul_precision().
        memory_budget: Bytes that one pass may hold of factors, which are kept all the same; None for no bound. To
            hold no more than a budget altogether, use `iter_tangent_kernels`.
        keep_factors: Keep the factors of layers with many positions also where their Jacobian is smaller; forward and
            backward Gram need them.
        progress: Show a progress bar on stderr.

    Returns:
        Kernels that stay valid when the model trains on: they hold factors, not the model.

    Raises:
        ValueError: TypeError or NotImplementedError for arguments that do not fit; the message names the argument.
    """
    return dict(
        iter_tangent_kernels(
            model,
            x,
            layers=layers,
            outputs=outputs,
            precision=precision,
            memory_budget=memory_budget,
            keep_factors=keep_factors,
            progress=progress,
        )
    )


def iter_tangent_kernels(
    model: nn.Module,
    x: Tensor,
    *,
    layers: Layers = None,
    outputs: Outputs = "all",
    precision: str | None = None,
    memory_budget: int | None = DEFAULT_MEMORY_BUDGET,
    keep_factors: bool = False,
    progress: bool = False,
) -> Iterator[tuple[str, TangentKernel]]:
    """Yields (name, kernel) in forward order, with factors of no more than `memory_budget` bytes captured at once.

    Drop each kernel before taking the next to stay within the budget; a smaller one costs time, never an error, and a
    single layer or group may exceed it. The model must not change before the last kernel. Arguments as
    `tangent_kernels`.
    """
    plan = plan_capture(
        model,
        x,
        layers=layers,
        outputs=outputs,
        precision=precision,
        memory_budget=memory_budget,
        keep_factors=keep_factors,
        progress=progress,
    )
    for name, kernel in plan.kernels():
        for term in kernel.factors:
            term.require_finite()
        yield name, kernel


@dataclass(frozen=True)
class CapturePlan:
    """A capture whose arguments have been checked, before any of its work."""

    model: nn.Module
    x: Tensor
    layers: list[PlannedLayer]
    groups: dict[str, list[str]]
    outputs: OutputSelection
    precision: str
    memory_budget: int
    progress: bool

    def kernels(self) -> Iterator[tuple[str, TangentKernel]]:
        """Yields (name, kernel) in forward order; the factors are not searched for nan and inf."""
        factors = iter_factors(self.model, self.x, self.layers, self.groups, self.outputs, self.memory_budget)
        with tqdm(total=len(self.groups), desc="layers", unit="layer", disable=not self.progress) as bar:
            for name, terms in factors:
                yield name, kernel_of_outputs(terms, self.outputs, self.precision, name)
                bar.update()

    def logits(self) -> Tensor:
        """f(x) [n, o], a chunk of samples at a time."""
        chunks = []
        for samples in torch.split(self.x, _FORWARD_CHUNK):
            with unchanged(self.x), torch.no_grad():
                chunks.append(torch.func.functional_call(self.model, copied_buffers(self.model), (samples,)))
        return torch.cat(chunks)


def plan_capture(
    model: nn.Module,
    x: Tensor,
    *,
    layers: Layers,
    outputs: Outputs,
    precision: str | None,
    memory_budget: int | None,
    keep_factors: bool,
    progress: bool,
) -> CapturePlan:
    """Checks the arguments of `iter_tangent_kernels`, and runs the model on one sample."""
    _check_budget(memory_budget)
    precision = resolve_precision(precision)
    selected = select_layers(model, layers)
    check_input(model, x)
    refuse_modules(model)
    with unchanged(x):
        trace = trace_model(model, x, selected.layers)
    selection = OutputSelection(outputs, trace.outputs)
    budget = sys.maxsize if memory_budget is None else memory_budget
    planned = plan_layers(model, x.shape[0], trace.layers, selection, budget, keep_factors=keep_factors)
    groups = _in_forward_order(selected.groups, [layer.name for layer in planned])
    return CapturePlan(model, x.detach(), planned, groups, selection, precision, budget, progress)


def _in_forward_order(groups: dict[str, list[str]], layers: Sequence[str]) -> dict[str, list[str]]:
    """Groups by their first layer, and the layers of each."""
    place = {name: index for index, name in enumerate(layers)}
    of_groups = {name: sorted(members, key=place.__getitem__) for name, members in groups.items()}
    return dict(sorted(of_groups.items(), key=lambda item: place[item[1][0]]))


def _check_budget(memory_budget: int | None) -> None:
    if memory_budget is None:
        return
    if isinstance(memory_budget, bool) or not isinstance(memory_budget, int):
        raise TypeError(f"memory_budget: expected a number of bytes, got {memory_budget!r}")
    if memory_budget <= 0:
        raise ValueError(f"memory_budget: expected a positive number of bytes, got {memory_budget}")
