"""The fallback for layers without a rule: their Jacobian, from the model as a function of their parameters alone.

It is right for whatever torch can differentiate: modules without a rule, parameters of a container, parameters that are
tied between modules, and parametrisations. It is slower than a rule, since a backward pass through the model also forms
the gradients of these parameters for every sample. A Jacobian that does not fit the memory budget is formed in slices
of parameters, each from a pass of its own, which are summed up to the kernel; what is kept is a square root of that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ahkernels.capture.call import explained_for_one
from ahkernels.capture.guard import quietly_batched
from ahkernels.capture.memory import return_freed_memory
from ahkernels.capture.plan import CapturePlan, PlannedLayer
from ahkernels.capture.root import add_products, square_root
from ahkernels.capture.tied_root import root_of_table


def jacobians(plan: CapturePlan, layers: Sequence[PlannedLayer], *, one_by_one: bool) -> dict[str, Tensor]:
    """Computes the gradients of <c, f(x)> by the parameters of layers, for each cotangent c and each sample.

    Args:
        plan: The plan.
        layers: Layers without a rule.
        one_by_one: Whether to use plain autograd for each sample and cotangent instead of batched gradients.

    Returns:
        The Jacobian [r, n, 1, parameters] of each layer by name, with zeros for parameters that f does not depend on.
        On the routes "root" and "tied" a matrix [r, n, 1, n r] with the same products of its rows.

    Raises:
        RuntimeError: If an operation of the model cannot be batched over samples and cotangents.
    """
    whole = [layer for layer in layers if layer.route.name == "jacobian"]
    pieces = [_pieces(plan, layer) for layer in whole]
    found = {layer.name: _columns(plan, own) for layer, own in zip(whole, pieces, strict=True)}
    if whole:
        _fill(plan, list(zip(pieces, found.values(), strict=True)), one_by_one)
    roots = {}
    for layer in (one for one in layers if one.alone):
        tied = root_of_table(plan, layer) if layer.route.name == "tied" and not one_by_one else None
        roots[layer.name] = _root(plan, layer, one_by_one) if tied is None else tied
    return {name: jacobian.unsqueeze(2) for name, jacobian in (found | roots).items()}


def _root(plan: CapturePlan, layer: PlannedLayer, one_by_one: bool) -> Tensor:
    """Sums slices of the Jacobian of a layer up to K, and takes a square root of it, [r, n, n r]."""
    r, n = plan.outputs.rows, len(plan.x)
    kernel = torch.zeros(r * n, r * n, dtype=torch.float64, device=plan.x.device)
    width = max(1, (plan.memory.kept - kernel.nbytes) // (r * n * plan.memory.item))
    for of_slice in _slices(_pieces(plan, layer), width):
        jacobian = _columns(plan, of_slice)
        _fill(plan, [(of_slice, jacobian)], one_by_one)
        add_products(kernel, jacobian, jacobian, plan.memory.work // 2)
        del jacobian
        return_freed_memory()
    return square_root(kernel, _dtype(plan, layer.parameters)).view(r, n, r * n)


@dataclass(frozen=True)
class _Piece:
    """The numbers from `begin` to `end` of a flattened parameter."""

    parameter: str
    begin: int
    end: int


def _slices(pieces: Sequence[_Piece], width: int) -> Iterator[list[_Piece]]:
    """Cuts parameters into slices of so many numbers; the last one may be shorter."""
    found: list[_Piece] = []
    room = width
    for piece in pieces:
        begin = piece.begin
        while begin < piece.end:
            end = min(piece.end, begin + room)
            found.append(_Piece(piece.parameter, begin, end))
            room -= end - begin
            begin = end
            if room == 0:
                yield found
                found, room = [], width
    if found:
        yield found


def _pieces(plan: CapturePlan, layer: PlannedLayer) -> list[_Piece]:
    return [_Piece(name, 0, plan.model.get_parameter(name).numel()) for name in layer.parameters]


def _columns(plan: CapturePlan, pieces: Sequence[_Piece]) -> Tensor:
    """Memory for columns of a Jacobian, [r, n, numbers of the pieces]."""
    numbers = sum(piece.end - piece.begin for piece in pieces)
    dtype = _dtype(plan, [piece.parameter for piece in pieces])
    return torch.empty(plan.outputs.rows, len(plan.x), numbers, dtype=dtype, device=plan.x.device)


def _fill(plan: CapturePlan, columns: Sequence[tuple[Sequence[_Piece], Tensor]], one_by_one: bool) -> None:
    """Computes columns of Jacobians, of several layers at once."""
    names = [piece.parameter for pieces, _ in columns for piece in pieces]
    chunks, cotangents = plan.memory.fallback_chunks(sum(plan.model.get_parameter(name).numel() for name in names))
    for samples in chunks:
        size = samples.stop - samples.start, plan.outputs.rows
        gradients = _one_by_one(plan, names, samples) if one_by_one else _batched(plan, names, samples, cotangents)
        for pieces, found in columns:
            end = 0
            for piece in pieces:
                begin, end = end, end + piece.end - piece.begin
                of_piece = gradients[piece.parameter].reshape(*size, -1)[:, :, piece.begin : piece.end]
                found[:, samples, begin:end] = of_piece.transpose(0, 1)


def _dtype(plan: CapturePlan, names: Sequence[str]) -> torch.dtype:
    return functools.reduce(torch.promote_types, [plan.model.get_parameter(name).dtype for name in names])


def _batched(plan: CapturePlan, names: Sequence[str], samples: slice, at_once: int) -> dict[str, Tensor]:
    """Computes gradients [k, r, *shape] of samples, batched over samples and over so many cotangents at once."""
    twin = plan.twin().model  # its parameters may be swapped
    parameters = {name: parameter.detach() for name, parameter in twin.named_parameters()}
    own = {name: parameters.pop(name) for name in names}
    cotangents = plan.cotangents

    x = plan.x[samples]

    def gradients_of(*sample: Tensor) -> dict[str, Tensor]:
        def f(values: dict[str, Tensor]) -> Tensor:
            buffers = {name: buffer.clone() for name, buffer in twin.named_buffers()}  # which a call may change
            batch = x.with_tensors([one.unsqueeze(0) for one in sample])
            return plan.forward(_with_values(twin, {**parameters, **values, **buffers}), batch)[0]

        pull = torch.func.vjp(f, own)[1]
        if len(cotangents) == 1:
            return {name: gradient.unsqueeze(0) for name, gradient in pull(cotangents[0])[0].items()}
        found: dict[str, Tensor] = torch.func.vmap(pull, chunk_size=at_once)(cotangents)[0]
        return found

    with quietly_batched:
        gradients: dict[str, Tensor] = torch.func.vmap(gradients_of)(*x.tensors)
    return {name: gradient.detach() for name, gradient in gradients.items()}


def _with_values(twin: nn.Module, values: dict[str, Tensor]) -> Callable[..., Any]:
    """The twin as a function of its arguments, with other parameters and buffers."""
    return lambda *args, **kwargs: torch.func.functional_call(twin, values, args, kwargs)


def _one_by_one(plan: CapturePlan, names: Sequence[str], samples: slice) -> dict[str, Tensor]:
    """Computes gradients [k, r, *shape] by plain autograd, one sample and one cotangent after the other.

    They are those by the very parameters that a twin of the model has, whatever way the model reaches them.
    """
    found: dict[str, Tensor] = {}
    for row, place in enumerate(range(samples.start, samples.stop)):
        twin, sample = plan.twin().model, plan.x[place : place + 1]
        with plan.other_random_numbers(), explained_for_one(plan.forward, plan.twin, sample):
            output = plan.forward(twin, sample)
        by = [twin.get_parameter(name) for name in names]
        for column, c in enumerate(plan.cotangents):
            gradients = torch.autograd.grad(output[0], by, c, retain_graph=True, allow_unused=True)
            for name, parameter, gradient in zip(names, by, gradients, strict=True):
                if name not in found:
                    found[name] = parameter.new_zeros(
                        samples.stop - samples.start, len(plan.cotangents), *parameter.shape
                    )
                if gradient is not None:
                    found[name][row, column] = gradient.to_dense()
    return {name: gradient.detach() for name, gradient in found.items()}
