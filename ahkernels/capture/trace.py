"""The trace: one call on a few samples, which shows the order of the layers, their uses and their positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ahkernels.capture.batch import Batch
from ahkernels.capture.call import Call, call_model, explained_for_one
from ahkernels.capture.forward import Forward
from ahkernels.capture.guard import RandomNumbers
from ahkernels.capture.observer import OBSERVING, Observer
from ahkernels.capture.selection import Layer
from ahkernels.capture.twin import Twin

_SAMPLES = 4


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
class TracedLayer(Layer):
    """A layer and how a call of the model uses it. Its rule is None where the one for its kind does not apply.

    Attributes:
        positions: Positions of all uses together.
        d: The length of its forward factor at one position; 0 where there is none.
        m: The length of its backward factor at one position, for one output.
        one_hot: Whether its forward factor is one-hot, and captured as integers.
    """

    positions: int
    d: int
    m: int
    one_hot: bool

    @classmethod
    def by_fallback(cls, layer: Layer, model: nn.Module) -> TracedLayer:
        """Describes a layer whose Jacobian comes from `ahkernels.capture.fallback`: one position, and no input."""
        parameters = sum(model.get_parameter(name).numel() for name in layer.parameters)
        return cls(layer.name, layer.module, layer.parameters, None, positions=1, d=0, m=parameters, one_hot=False)

    @property
    def bias(self) -> bool:
        """Whether b = 1 is added to the forward Gram of its factors, as its rule or the fallback forms them."""
        return self.rule is None or self.rule.has_bias(self.module)


@dataclass(frozen=True)
class Trace:
    """What the trace of a model found.

    Attributes:
        layers: The layers in the order of their first use.
        output: f(x) [k, o] of the few samples that were traced.
        draws: Whether the model draws random numbers.
        bytes_per_sample: The size of what operations computed for one sample.
        dtype: The coarsest dtype on the way from parameters to outputs.
    """

    layers: list[TracedLayer]
    output: Tensor
    draws: bool
    bytes_per_sample: int
    dtype: torch.dtype


def trace_model(
    forward: Forward, new_twin: Callable[..., Twin], model: nn.Module, x: Batch, layers: Sequence[Layer]
) -> Trace:
    """Calls a twin of the model on a few samples of x and records its layers.

    Args:
        forward: How the model is called.
        new_twin: Makes a twin of the model.
        model: The network itself.
        x: Its inputs.
        layers: The layers to record.

    Returns:
        The layers as this call uses them.

    Raises:
        ValueError: If the call would change a parameter or its input in place, takes a parameter otherwise than as that
            of a module, or for the reasons of `call_model`.
        TypeError: If a rule records something else than tensors.
    """
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
    traced = {layer.name: _traced(layer, model, call, held_otherwise, len(x)) for layer in layers}
    order = [*call.uses, *(name for name in traced if name not in call.uses)]
    return Trace(
        [traced[name] for name in order], call.output.detach(), drawn, observer.bytes // len(few), call.coarsest_dtype
    )


def _touched(parameter: Tensor, leaf: Tensor) -> bool:
    """Whether a call has changed more of a leaf than a backward pass would."""
    moved = leaf.data_ptr() != parameter.data_ptr() and not parameter.is_inference()
    frozen = parameter.requires_grad and not leaf.requires_grad
    return moved or frozen or bool(leaf._backward_hooks) or vars(leaf).keys() != vars(parameter).keys()


def _traced(layer: Layer, model: nn.Module, call: Call, held_otherwise: Set[str], n: int) -> TracedLayer:
    if layer.rule is None or not call.by_uses_alone(layer) or not held_otherwise.isdisjoint(layer.parameters):
        return TracedLayer.by_fallback(layer, model)
    uses = call.uses.get(layer.name)
    if uses is None:  # not called for these samples; never called, its kernel is zero and its factors are empty
        return TracedLayer(**vars(layer), positions=1, d=0, m=0, one_hot=False)
    positions = 0
    for one, shape in zip(uses.recorded, uses.output_shapes, strict=True):
        assert one is not None
        a, g = layer.rule.factors(layer.module, one, call.output.new_zeros(1, *shape))
        positions += a.shape[1] if a.dim() > 1 else 0
    if a.dim() != 3 or g.dim() != 4:
        raise ValueError(
            f"rule: expected factors() for layer {layer.name!r} to return a [n, p, d] and g [r, n, p, m], got shapes "
            f"{list(a.shape)} and {list(g.shape)}"
        )
    if a.shape[2] == 0 and not layer.rule.has_bias(layer.module):
        raise ValueError(
            f"rule: expected has_bias() for layer {layer.name!r} to be True, since factors() returns a Jacobian, whose "
            "forward Gram has to be one; got False; write return True"
        )
    d, one_hot = a.shape[2], not a.is_floating_point()
    if one_hot:  # as many columns as there are words, at most
        most = max(model.get_parameter(name).shape[0] for name in layer.parameters)
        d = min(most, n * positions)
    return TracedLayer(**vars(layer), positions=positions, d=d, m=g.shape[3], one_hot=one_hot)
