"""The run of a capture: the factors of as many layers in one pass as fit the memory budget together.

One pass over the model is a forward pass and a backward pass down to the first layer that is captured, with the
cotangents of all outputs batched. Samples are taken in chunks, which bounds the memory of a pass. The first chunk is
certified, which takes two gradients of parameters (see `ahkernels.capture.certificate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ahkernels.capture.call import Call, call_model
from ahkernels.capture.certificate import disagreeing, reference
from ahkernels.capture.fallback import jacobians
from ahkernels.capture.guard import quietly_batched, unchanged
from ahkernels.capture.route import Route, Shape, choose_route, jacobian
from ahkernels.capture.trace import TracedLayer
from ahkernels.factors import LayerFactors
from ahkernels.outputs import OutputSelection

DEFAULT_MEMORY_BUDGET = 2 << 30  # bytes

# How large the gradients of one chunk of samples at one layer may be. A single chunk is the layer's factor as it is.
# Several chunks are copied into one factor, which costs more time than small chunks save by staying in a cache. Devices
# take larger chunks, which keep them busy.
_CHUNK_BYTES = 32 << 20
_DEVICE_CHUNK_BYTES = 256 << 20


def iter_factors(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[PlannedLayer],
    groups: Mapping[str, Sequence[str]],
    outputs: OutputSelection,
    memory_budget: int,
) -> Iterator[tuple[str, list[LayerFactors]]]:
    """Captures the factors of groups of layers, as many groups in one pass as fit the budget, and at least one.

    Factors are dropped here once the last group that needs them has been yielded.

    Args:
        model: The network.
        x: Its inputs [n, ...].
        layers: The planned layers, in forward order.
        groups: The names of the layers of each group.
        outputs: The outputs that give the r cotangents.
        memory_budget: Bytes of factors that one pass may capture.

    Yields:
        The name of each group with the factors of its layers, backward factors of shape [n, s, r, m]. They have not
        been searched for nan and inf.

    Raises:
        ValueError: If a call of the model has no valid output; see `call_model`.
        RuntimeError: If a later call uses a layer more or less often than the first one did.
    """
    planned = {layer.name: layer for layer in layers}
    for names in _passes(planned, groups, memory_budget // _item_size(model)):
        members = [name for name in planned if any(name in groups[group] for group in names)]
        try:
            factors = _capture(model, x, [planned[name] for name in members], outputs)
        except _RuleDoesNotApplyError as found:
            planned |= {name: planned[name].without_rule(model, x.shape[0], outputs) for name in found.layers}
            factors = _capture(model, x, [planned[name] for name in members], outputs)
        for i, name in enumerate(names):
            later = {member for group in names[i + 1 :] for member in groups[group]}
            yield name, [factors[member] if member in later else factors.pop(member) for member in groups[name]]


def plan_layers(
    model: nn.Module,
    n: int,
    layers: Sequence[TracedLayer],
    outputs: OutputSelection,
    memory_budget: int,
    *,
    keep_factors: bool,
) -> list[PlannedLayer]:
    """Plans how each layer is captured for n samples."""
    most_numbers = memory_budget // _item_size(model)
    return [PlannedLayer.of(layer, n, outputs, most_numbers, keep_factors=keep_factors) for layer in layers]


class _RuleDoesNotApplyError(Exception):
    """The rules of some layers do not apply to a call: samples do not come first, or the certificate is missed.

    Args:
        layers: Their names.
    """

    def __init__(self, layers: set[str]) -> None:
        super().__init__(layers)
        self.layers = layers


@dataclass(frozen=True)
class PlannedLayer:
    """A layer and its route for a given number of samples.

    Attributes:
        traced: The layer, as the trace found it.
        route: How its kernel will be computed.
    """

    traced: TracedLayer
    route: Route

    @classmethod
    def of(
        cls, layer: TracedLayer, n: int, outputs: OutputSelection, most_numbers: int, *, keep_factors: bool = False
    ) -> PlannedLayer:
        """Chooses the route of a layer for n samples, of which at most `most_numbers` numbers may be kept."""
        bias = has_bias(layer)
        shape = Shape(n, outputs.rows, outputs.entries, layer.positions, layer.d, layer.m, bias)
        return cls(layer, choose_route(shape, most_numbers, keep_factors=keep_factors and layer.d > 0))

    def without_rule(self, model: nn.Module, n: int, outputs: OutputSelection) -> PlannedLayer:
        """Plans the same layer with its Jacobian from the fallback."""
        traced = TracedLayer.without_rule(self.traced.layer, model, reached=self.traced.reached)
        return PlannedLayer.of(traced, n, outputs, 0)

    @property
    def name(self) -> str:
        """The name of the layer."""
        return self.traced.layer.name

    @property
    def as_jacobian(self) -> bool:
        """Whether the Jacobian of the layer is kept instead of its factors."""
        return self.route.name == "jacobian"

    @property
    def bias(self) -> bool:
        """Whether b = 1 is added to the forward Gram of what is kept; for a Jacobian, that Gram is then all ones."""
        return self.as_jacobian or has_bias(self.traced)


def has_bias(layer: TracedLayer) -> bool:
    """Whether b = 1 is added to the forward Gram of a layer's factors, as its rule or the fallback forms them."""
    rule = layer.layer.rule
    return rule is None or rule.has_bias(layer.layer.module)


def _item_size(model: nn.Module) -> int:
    return next(model.parameters()).dtype.itemsize


def _passes(
    layers: Mapping[str, PlannedLayer], groups: Mapping[str, Sequence[str]], most_numbers: int
) -> list[list[str]]:
    """Lists the groups that each pass captures: as many as fit, and at least one."""
    passes: list[list[str]] = []
    captured: set[str] = set()
    held = 0
    for name, members in groups.items():
        numbers = sum(layers[member].route.numbers for member in members if member not in captured)
        if not passes or held + numbers > most_numbers:
            passes.append([])
            captured, held = set(), 0
            numbers = sum(layers[member].route.numbers for member in members)
        passes[-1].append(name)
        captured |= set(members)
        held += numbers
    return passes


def _capture(
    model: nn.Module, x: Tensor, layers: Sequence[PlannedLayer], outputs: OutputSelection
) -> dict[str, LayerFactors]:
    """Captures the factors of layers, by name, in one pass over the samples."""
    n, r = x.shape[0], outputs.rows
    kept = _fallback(model, x, [layer for layer in layers if layer.traced.layer.rule is None], outputs)
    with_rule = [layer for layer in layers if layer.traced.layer.rule is not None]
    widest = max([1, *(layer.traced.positions * layer.traced.m for layer in with_rule)])
    chunk_bytes = _CHUNK_BYTES if x.device.type == "cpu" else _DEVICE_CHUNK_BYTES
    chunk = min(n, max(16, chunk_bytes // (r * widest * _item_size(model))))
    for begin in range(0, n, chunk) if with_rule else ():
        with unchanged(x):
            recorded = [layer.traced.layer for layer in with_rule]
            call = call_model(model, x[begin : begin + chunk], recorded)
            not_first = {name for name, uses in call.uses.items() if any(one is None for one in uses.recorded)}
            if not_first:
                raise _RuleDoesNotApplyError(not_first)
            reached = [layer for layer in with_rule if layer.traced.reached]
            of_call = None
            if begin == 0:
                cotangents = outputs.cotangents(call.output)
                of_call = reference(call, [layer.traced.layer for layer in reached], cotangents)
            gradients = _gradients(call, [layer.traced for layer in with_rule], outputs)
        of_chunk = {layer.name: _factors_of(call, layer, gradients.get(layer.name), r) for layer in with_rule}
        if of_call is not None:
            wrong = disagreeing(of_call, of_chunk, [(layer.traced.layer, layer.bias) for layer in reached])
            if wrong:
                raise _RuleDoesNotApplyError(wrong)
        for layer in with_rule:
            a, g = of_chunk.pop(layer.name)
            if chunk == n:  # no copy
                kept[layer.name] = a, g
                continue
            if begin == 0:
                kept[layer.name] = a.new_empty(n, *a.shape[1:]), g.new_empty(r, n, *g.shape[2:])
            forward, backward = kept[layer.name]
            forward[begin : begin + len(a)], backward[:, begin : begin + len(a)] = a, g
        del call, gradients
    factors = {}
    for layer in layers:
        forward, backward = kept.pop(layer.name)
        factors[layer.name] = LayerFactors(
            forward,
            backward.permute(1, 2, 0, 3),
            layer.bias,
            layer.name,
            by_jacobian=layer.route.name == "jacobian slices",
            unchecked=True,
        )
    return factors


def _fallback(
    model: nn.Module, x: Tensor, layers: Sequence[PlannedLayer], outputs: OutputSelection
) -> dict[str, tuple[Tensor, Tensor]]:
    """Computes the Jacobians [r, n, 1, parameters] of layers without a rule, with empty forward factors [n, 1, 0]."""
    if not layers:
        return {}
    cotangents = outputs.cotangents(next(model.parameters()).detach())
    with unchanged(x):
        found = jacobians(model, x, [layer.traced.layer.parameters for layer in layers], cotangents)
    return {
        layer.name: (j.new_zeros(1).expand(x.shape[0], 1, 0), j.unsqueeze(2))
        for layer, j in zip(layers, found, strict=True)
    }


def _gradients(call: Call, layers: Sequence[TracedLayer], outputs: OutputSelection) -> dict[str, list[Tensor | None]]:
    """Computes the gradients [r, *output shape] at each use of each layer; None where a use does not reach f."""
    names = [layer.layer.name for layer in layers if layer.reached]
    edges = [edge for name in names for edge in call.uses[name].edges]
    if not edges:
        return {}
    cotangents = outputs.cotangents(call.output)  # [r, o]
    batched = cotangents[:, None, :].expand(-1, call.output.shape[0], -1)  # [r, n, o]
    if len(batched) == 1:
        found: Sequence[Tensor | None] = torch.autograd.grad(
            call.output, edges, batched[0], retain_graph=True, allow_unused=True
        )
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
        with quietly_batched():
            return torch.autograd.grad(
                output, edges, batched, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
    except RuntimeError:
        # An operation of the model cannot be batched over cotangents.
        one_by_one: list[tuple[Tensor | None, ...]] = [
            torch.autograd.grad(output, edges, cotangent, retain_graph=True, allow_unused=True) for cotangent in batched
        ]
        by_edge = zip(*one_by_one, strict=True)
        return [None if parts[0] is None else torch.stack([g for g in parts if g is not None]) for parts in by_edge]


def _factors_of(
    call: Call, layer: PlannedLayer, gradients: Sequence[Tensor | None] | None, r: int
) -> tuple[Tensor, Tensor]:
    """Forms what is kept of a layer from one call: a [n, s, d] and g [r, n, s, m]."""
    n, uses, traced = call.output.shape[0], call.uses.get(layer.name), layer.traced
    rule = traced.layer.rule
    assert rule is not None
    zeros = call.output.detach().new_zeros(1)
    if uses is None:
        return zeros.expand(n, 1, 0), zeros.expand(r, n, 1, 0)
    if len(uses.recorded) != traced.uses:
        raise RuntimeError(
            f"model: expected each call to use layer {layer.name!r} as often, got {traced.uses} and "
            f"{len(uses.recorded)} times"
        )
    recorded = [one for one in uses.recorded if one is not None]
    forward, backward = [], []
    for use, gradient in enumerate(gradients or [None] * traced.uses):
        if gradient is None:
            gradient = zeros.expand(r, *uses.output_shapes[use])
        a, g = rule.factors(traced.layer.module, recorded[use], gradient.detach())
        forward.append(a)
        backward.append(g)
    a, g = (of_uses[0] if len(of_uses) == 1 else torch.cat(of_uses, -2) for of_uses in (forward, backward))
    if layer.as_jacobian:
        bias = rule.has_bias(traced.layer.module)
        return zeros.expand(n, 1, 0), jacobian(a, g, bias=bias).unsqueeze(2)
    return a, g
