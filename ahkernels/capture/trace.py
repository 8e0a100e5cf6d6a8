"""The trace: a call on a few samples, which shows the order of the layers, their uses, positions and rules.

Where a rule does not hold in this call, another call follows with the next rule of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping, Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ahkernels.capture.backward import unfolded
from ahkernels.capture.batch import Batch
from ahkernels.capture.call import Call, Uses, call_model, explained_for_one
from ahkernels.capture.doubt import not_holding
from ahkernels.capture.forward import Forward
from ahkernels.capture.guard import RandomNumbers
from ahkernels.capture.observer import OBSERVING, Observer
from ahkernels.capture.rules import Rule
from ahkernels.capture.selection import Layer
from ahkernels.capture.traced import TracedLayer
from ahkernels.capture.twin import Twin

_SAMPLES = 5  # seldom the size of anything else in a network, such as a number of heads


def few_samples(n: int) -> list[int]:
    """The indices of the few of n samples that are traced, from all over them."""
    if n <= _SAMPLES + 1:
        return list(range(0, n, 2))
    return [n * part // _SAMPLES for part in range(_SAMPLES)]


def another_sample(n: int) -> int:
    """The index of a sample that is not traced; the only one of one."""
    few = few_samples(n)
    return next((index for index in range(n - 1, -1, -1) if index not in few), 0)


@dataclass(frozen=True)
class Trace:
    """What the trace of a model found.

    Attributes:
        layers: The layers in the order of their first use.
        output: f(x) [k, o] of the few samples that were traced.
        draws: Whether the model draws random numbers.
        bytes_per_sample: The size of what operations computed for one sample.
        dtype: The coarsest dtype on the way from parameters to outputs.
        shapes: Those of the uses of the layers (see `Call.shapes`).
    """

    layers: list[TracedLayer]
    output: Tensor
    draws: bool
    bytes_per_sample: int
    dtype: torch.dtype
    shapes: Hashable


def trace_model(
    forward: Forward,
    new_twin: Callable[..., Twin],
    model: nn.Module,
    x: Batch,
    layers: Sequence[Layer],
    failed: MutableMapping[str, int],
) -> Trace:
    """Calls a twin of the model on a few samples of x and records its layers, with the first of their rules that holds.

    Args:
        forward: How the model is called.
        new_twin: Makes a twin of the model.
        model: The network itself.
        x: Its inputs.
        layers: The layers to record.
        failed: How many of its rules a layer is known not to have; what is found is added to it.

    Returns:
        The layers as this call uses them.

    Raises:
        ValueError: If the call would change a parameter or its input in place, takes a parameter otherwise than as that
            of a module, or for the reasons of `call_model`.
        TypeError: If a rule records something else than tensors.
    """
    rest = [_without_failed(layer, failed.get(layer.name, 0)) for layer in layers]
    while True:
        trace, failing = _trace(forward, new_twin, model, x, rest)
        if not failing:
            return trace
        for name in failing:
            failed[name] = failed.get(name, 0) + 1
        rest = [layer.with_next_rule() if layer.name in failing else layer for layer in rest]


def _without_failed(layer: Layer, rules: int) -> Layer:
    for _ in range(rules):
        layer = layer.with_next_rule()
    return layer


def _trace(
    forward: Forward, new_twin: Callable[..., Twin], model: nn.Module, x: Batch, layers: Sequence[Layer]
) -> tuple[Trace, set[str]]:
    """Calls the model; returns what it found and the layers whose rule does not hold."""
    parameters = dict(model.named_parameters())
    few = x[few_samples(len(x))]
    protected: dict[str, Tensor] = {repr(name): parameter for name, parameter in parameters.items()}
    protected |= dict(zip(few.names, few.tensors, strict=True))
    own = {name for layer in layers for name in layer.parameters}
    twin = new_twin(own_leaves=True)
    for module in twin.adopted:
        kind = type(module).__name__
        protected |= {f"{name!r} of a {kind} in an attribute": one for name, one in module.named_parameters()}
    frozen = {name for name in own if not parameters[name].requires_grad}
    observer = Observer(protected, {key: name for key, name in twin.replaced.items() if name in frozen})
    random, drawn = RandomNumbers(x.device), False
    try:
        with OBSERVING, explained_for_one(forward, new_twin, few):
            call = call_model(forward, twin, few, layers, observer=observer)
    finally:
        drawn = observer.drawn or random.drawn_outside_of_torch()
        if drawn:
            random.restore()
    for name, leaf in call.leaves.items():
        if leaf.grad is not None:
            raise ValueError(
                f"model: expected a forward that leaves gradients alone, got one that adds to that of {name!r} by a "
                "backward pass of its own; use torch.autograd.grad in forward"
            )
        if _touched(parameters[name], leaf):
            raise ValueError(
                f"model: expected a forward that leaves parameters as they are, got one that changes {name!r}: its "
                "memory, hooks, attributes or whether it requires gradients; change it once, before the measurement"
            )
    for name in observer.taken:
        raise ValueError(
            f"model: expected forward to take {name!r} from its module, since it is frozen, got a forward that holds "
            "it in another way too (in what torch.compile made, say), where a measurement cannot follow it; write "
            f"model.get_parameter({name!r}).requires_grad_(), or layers=[...] without its layer"
        )
    held_otherwise = {name for name in own if id(parameters[name]) in call.graph[1]}  # not replaced in the twin
    traced: dict[str, TracedLayer] = {}
    failing = set()
    for layer in layers:
        found = _traced(layer, model, call, held_otherwise, len(x))
        traced[layer.name] = found or TracedLayer.by_fallback(layer, model)
        if found is None:
            failing.add(layer.name)
    failing |= not_holding(call, [layer for layer in traced.values() if layer.doubtful])
    order = [*call.uses, *(name for name in traced if name not in call.uses)]
    own_bytes = observer.bytes // len(few)
    of_uses = [traced[name] for name in order]
    trace = Trace(of_uses, call.output.detach(), drawn, own_bytes, call.coarsest_dtype, call.shapes)
    return trace, failing


def _touched(parameter: Tensor, leaf: Tensor) -> bool:
    """Whether a call has changed more of a leaf than a backward pass would."""
    moved = leaf.data_ptr() != parameter.data_ptr() and not parameter.is_inference()
    frozen = parameter.requires_grad and not leaf.requires_grad
    return moved or frozen or bool(leaf._backward_hooks) or vars(leaf).keys() != vars(parameter).keys()


def _traced(layer: Layer, model: nn.Module, call: Call, held_otherwise: Set[str], n: int) -> TracedLayer | None:
    """Describes a layer; None where its rule does not hold."""
    if layer.rule is None:
        return TracedLayer.by_fallback(layer, model)
    if not call.by_uses_alone(layer) or not held_otherwise.isdisjoint(layer.parameters):
        return None
    uses = call.uses.get(layer.name)
    if uses is None or not uses.recorded:  # not used for these samples; never used, its kernel is zero
        return TracedLayer(**vars(layer), positions=1, d=0, m=0, one_hot=False)
    try:
        return _described(layer, layer.rule, model, call, uses, n)
    except Exception:
        if not layer.doubtful:
            raise
        return None


def _described(layer: Layer, rule: Rule, model: nn.Module, call: Call, uses: Uses, n: int) -> TracedLayer:
    positions = 0
    for use, recorded in enumerate(uses.recorded):
        a, g = unfolded(*rule.factors(call.modules[layer.name], recorded, uses.no_gradient(use, 1)), len(call.output))
        positions += a.shape[1] if a.dim() > 1 else 0
    if a.dim() != 3 or g.dim() != 4:
        raise ValueError(
            f"rule: expected factors() for layer {layer.name!r} to return a [n, p, d] and g [r, n, p, m], got shapes "
            f"{list(a.shape)} and {list(g.shape)}"
        )
    if a.shape[2] == 0 and not rule.has_bias(layer.module):
        raise ValueError(
            f"rule: expected has_bias() for layer {layer.name!r} to be True, since factors() returns a Jacobian, whose "
            "forward Gram has to be one; got False; write return True"
        )
    d, one_hot = a.shape[2], not a.is_floating_point()
    if one_hot:  # as many columns as there are words, at most
        most = max(model.get_parameter(name).shape[0] for name in layer.parameters)
        d = min(most, n * positions)
    positions = positions if d > 0 else 1  # Jacobians of several uses are summed
    traced = TracedLayer(**vars(layer), positions=positions, d=d, m=g.shape[3], one_hot=one_hot)
    return replace(traced, doubtful=True) if uses.folded else traced
