"""One call on one sample, before any real work: order, number and sizes of the layers' uses."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ahkernels.capture.call import call_model, nodes_reaching
from ahkernels.capture.guard import Unwritten
from ahkernels.capture.selection import Layer


@dataclass(frozen=True)
class TracedLayer:
    """A layer with what the model does with it.

    Attributes:
        layer: The layer, with the rule that applies here.
        uses: How often a call of the model uses it.
        positions: Positions of all uses together.
        d: Length of its forward factor.
        m: Length of its backward factor.
        reached: Whether any use reaches the output.
    """

    layer: Layer
    uses: int
    positions: int
    d: int
    m: int
    reached: bool

    @classmethod
    def without_rule(cls, layer: Layer, model: nn.Module, *, reached: bool) -> TracedLayer:
        """A layer whose Jacobian comes from `ahkernels.capture.fallback`."""
        numbers = sum(model.get_parameter(name).numel() for name in layer.parameters)
        return cls(replace(layer, rule=None), 1, 1, 0, numbers, reached)


@dataclass(frozen=True)
class Trace:
    """The layers in the order of their first use, and the number of outputs."""

    layers: list[TracedLayer]
    outputs: int


def trace_model(model: nn.Module, x: Tensor, layers: Sequence[Layer]) -> Trace:
    """Calls the model on the first sample of x.

    Raises:
        ValueError: where the call would change a parameter or its input, and see `call_model`.
    """
    parameters, first = dict(model.named_parameters()), x[:1].detach()
    guard = Unwritten({repr(name): parameter for name, parameter in parameters.items()} | {"x": first})
    call = call_model(model, first, layers, parameters=parameters, guard=guard)
    nodes, into_leaf = nodes_reaching(call.output)
    traced: dict[str, TracedLayer] = {}
    for layer in layers:
        uses = call.uses.get(layer.name)
        edges = [] if uses is None else uses.edges
        reaching = sum(edge.node in nodes for edge in edges)
        uses_of = [into_leaf.get(id(call.leaves[name]), 0) for name in layer.parameters]
        if not any(uses_of):
            warnings.warn(
                f"layer {layer.name!r} does not reach the output of the model: its kernel is zero",
                stacklevel=2,
            )
        recorded = [] if uses is None else uses.recorded
        elsewhere = uses is not None and any(node in nodes for node in uses.other_outputs)
        if layer.rule is None or max(uses_of) > reaching or elsewhere or any(one is None for one in recorded):
            # No rule for the module or for one of its calls, or parameters that also act otherwise.
            traced[layer.name] = TracedLayer.without_rule(layer, model, reached=any(uses_of))
        elif uses is None:  # nothing to capture, and no input to measure: a zero kernel of a single number
            traced[layer.name] = TracedLayer(layer, 1, 1, 0, 0, False)
        else:
            positions = 0
            for one, shape in zip(recorded, uses.output_shapes, strict=True):
                assert one is not None
                a, g = layer.rule.factors(layer.module, one, call.output.new_zeros(1, *shape))
                positions += a.shape[1]
            traced[layer.name] = TracedLayer(layer, len(edges), positions, a.shape[2], g.shape[3], reaching > 0)
    order = [*call.uses, *(name for name in traced if name not in call.uses)]
    return Trace([traced[name] for name in order], call.output.shape[1])
