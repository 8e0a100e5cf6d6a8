"""The factors of all layers, in groups of layers whose factors fit the memory budget together.

Each group costs a forward pass and a backward pass down to its first layer, with the cotangents of all outputs batched.
Samples are taken in chunks, which bounds the memory of the passes and keeps it in the cache. No gradient of a parameter
is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ahkernels.capture.call import Call, call_model
from ahkernels.capture.guard import unchanged
from ahkernels.capture.trace import TracedLayer
from ahkernels.factors import Factors
from ahkernels.outputs import OutputSelection

DEFAULT_MEMORY_BUDGET = 2 << 30

# Of the gradients of a chunk of samples at one layer: about the second-level cache of a few cores, and enough to keep
# another device busy.
_CHUNK_BYTES = 4 << 20
_DEVICE_CHUNK_BYTES = 256 << 20


def iter_factors(
    model: nn.Module, x: Tensor, layers: Sequence[TracedLayer], outputs: OutputSelection, memory_budget: int
) -> Iterator[Factors]:
    """Yields the factors of each layer, in their order and unchecked; backward [n, s, r, m] for r cotangents.

    Factors of a layer are dropped here once they are yielded. A group holds at least one layer, whatever the budget.
    """
    rows = len(outputs.cotangents(torch.empty(0)))
    for group in _groups(layers, x.shape[0], rows, _item_size(model), memory_budget):
        factors = _capture(model, x, group, outputs, rows)
        while factors:
            yield factors.pop(0)


def _item_size(model: nn.Module) -> int:
    return next(model.parameters()).dtype.itemsize


def _groups(
    layers: Sequence[TracedLayer], n: int, rows: int, item_size: int, memory_budget: int
) -> Iterator[list[TracedLayer]]:
    group: list[TracedLayer] = []
    held = 0
    for layer in layers:
        size = n * layer.uses * (layer.d + rows * layer.m) * item_size
        if group and held + size > memory_budget:
            yield group
            group, held = [], 0
        group.append(layer)
        held += size
    yield group


def _capture(
    model: nn.Module, x: Tensor, group: Sequence[TracedLayer], outputs: OutputSelection, rows: int
) -> list[Factors]:
    n = x.shape[0]
    widest = max(1, *(layer.m for layer in group))
    chunk_bytes = _CHUNK_BYTES if x.device.type == "cpu" else _DEVICE_CHUNK_BYTES
    chunk = min(n, max(16, chunk_bytes // (rows * widest * _item_size(model))))
    forward: dict[str, list[Tensor]] = {}  # by layer: [n, d] for each use
    backward: dict[str, list[Tensor]] = {}  # by layer: [r, n, m] for each use
    for begin in range(0, n, chunk):
        with unchanged(x):
            call = call_model(model, x[begin : begin + chunk], [layer.layer for layer in group])
            gradients = _gradients(call, group, outputs)
        for layer in group:
            inputs, factors = _factors_of(call, layer, gradients, rows)
            if chunk == n:  # no copy
                forward[layer.layer.name], backward[layer.layer.name] = inputs, factors
                continue
            if begin == 0:
                forward[layer.layer.name] = [a.new_empty(n, a.shape[1]) for a in inputs]
                backward[layer.layer.name] = [g.new_empty(rows, n, g.shape[2]) for g in factors]
            end = begin + inputs[0].shape[0]
            for use in range(layer.uses):
                forward[layer.layer.name][use][begin:end] = inputs[use]
                backward[layer.layer.name][use][:, begin:end] = factors[use]
        del call, gradients
    return [_assemble(layer, forward.pop(layer.layer.name), backward.pop(layer.layer.name)) for layer in group]


def _gradients(call: Call, group: Sequence[TracedLayer], outputs: OutputSelection) -> dict[str, list[Tensor | None]]:
    """The gradients [r, *output shape] at each use of each layer of the group, None where it does not reach f."""
    names = [layer.layer.name for layer in group if layer.reached]
    edges = [edge for name in names for edge in call.uses[name].edges]
    if not edges:
        return {}
    cotangents = outputs.cotangents(call.output)  # [r, o]
    batched = cotangents[:, None, :].expand(-1, call.output.shape[0], -1)  # [r, n, o]
    if len(batched) == 1:
        found: Sequence[Tensor | None] = torch.autograd.grad(call.output, edges, batched[0], allow_unused=True)
        gradients = [None if g is None else g.unsqueeze(0) for g in found]
    else:
        gradients = list(_batched_gradients(call.output, edges, batched))
    result: dict[str, list[Tensor | None]] = {}
    for name in names:
        uses = len(call.uses[name].edges)
        result[name], gradients = gradients[:uses], gradients[uses:]
    return result


def _batched_gradients(
    output: Tensor, edges: Sequence[torch.autograd.graph.GradientEdge], batched: Tensor
) -> Sequence[Tensor | None]:
    try:
        return torch.autograd.grad(output, edges, batched, retain_graph=True, allow_unused=True, is_grads_batched=True)
    except RuntimeError:
        # An operation of the model cannot be batched over cotangents: take them one by one.
        one_by_one: list[tuple[Tensor | None, ...]] = [
            torch.autograd.grad(output, edges, cotangent, retain_graph=True, allow_unused=True) for cotangent in batched
        ]
        by_edge = zip(*one_by_one, strict=True)
        return [None if parts[0] is None else torch.stack([g for g in parts if g is not None]) for parts in by_edge]


def _factors_of(
    call: Call, layer: TracedLayer, gradients: dict[str, list[Tensor | None]], rows: int
) -> tuple[list[Tensor], list[Tensor]]:
    """a_s [n, d] and g_s [r, n, m] of each use."""
    name, n = layer.layer.name, call.output.shape[0]
    uses = call.uses.get(name)
    if uses is None:
        return [call.output.new_zeros(n, 0).detach()], [call.output.new_zeros(rows, n, 0).detach()]
    if len(uses.inputs) != layer.uses:
        raise RuntimeError(
            f"model: expected each call to use layer {name!r} as often, got {layer.uses} and {len(uses.inputs)} times"
        )
    factors = []
    for gradient in gradients.get(name, [None] * layer.uses):
        if gradient is None:
            factors.append(uses.inputs[0].new_zeros(1).expand(rows, n, layer.m))
        else:
            factors.append(layer.layer.rule.backward_factor(layer.layer.module, gradient.detach()))
    return uses.inputs, factors


def _assemble(layer: TracedLayer, inputs: list[Tensor], gradients: list[Tensor]) -> Factors:
    single = layer.uses == 1
    forward = inputs[0].unsqueeze(1) if single else torch.stack(inputs, 1)
    backward = gradients[0].transpose(0, 1).unsqueeze(1) if single else torch.stack(gradients, 2).permute(1, 2, 0, 3)
    rule, module = layer.layer.rule, layer.layer.module
    return Factors(forward, backward, rule.has_bias(module), layer.layer.name, unchecked=True)
