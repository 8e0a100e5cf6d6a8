"""The trace: one call on one sample, which shows the order of the layers, their uses and their positions."""

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
    """A layer and how a call of the model uses it.

    Attributes:
        layer: The layer; its rule is None where the rule for its kind does not apply to this call.
        uses: How often a call of the model calls the layer.
        positions: Positions of all uses together.
        d: The length of its forward factor at one position; 0 where there is none.
        m: The length of its backward factor at one position, for one output.
        reached: Whether the output depends on the layer.
    """

    layer: Layer
    uses: int
    positions: int
    d: int
    m: int
    reached: bool

    @classmethod
    def without_rule(cls, layer: Layer, model: nn.Module, *, reached: bool) -> TracedLayer:
        """Describes a layer whose Jacobian comes from `ahkernels.capture.fallback`: one position, and no input."""
        parameters = sum(model.get_parameter(name).numel() for name in layer.parameters)
        return cls(replace(layer, rule=None), uses=1, positions=1, d=0, m=parameters, reached=reached)


@dataclass(frozen=True)
class Trace:
    """What the trace of a model found.

    Attributes:
        layers: The layers in the order of their first use.
        outputs: The number of outputs o.
    """

    layers: list[TracedLayer]
    outputs: int


def trace_model(model: nn.Module, x: Tensor, layers: Sequence[Layer]) -> Trace:
    """Calls the model on the first sample of x and records its layers.

    Warns where a layer does not reach the output, so that its kernel is zero.

    Args:
        model: The network.
        x: Its inputs [n, ...].
        layers: The layers to record.

    Returns:
        The layers as this call uses them.

    Raises:
        ValueError: If the call would change a parameter or its input in place, or for the reasons of `call_model`.
        TypeError: If a rule records something else than tensors.
    """
    parameters, first = dict(model.named_parameters()), x[:1].detach()
    guard = Unwritten({repr(name): parameter for name, parameter in parameters.items()} | {"x": first})
    call = call_model(model, first, layers, guard=guard)
    nodes, into_leaf = nodes_reaching(call.output)
    traced: dict[str, TracedLayer] = {}
    for layer in layers:
        uses = call.uses.get(layer.name)
        edges = [] if uses is None else uses.edges
        uses_reaching = sum(edge.node in nodes for edge in edges)
        # How often each parameter enters the graph of the output, by uses of the layer or otherwise.
        entries = [into_leaf.get(id(call.leaves[name]), 0) for name in layer.parameters]
        if not any(entries):
            trained = all(parameters[name].requires_grad for name in layer.parameters)
            warnings.warn(
                f"layer {layer.name!r} does not reach the output of the model: its kernel is zero"
                + ("" if trained else "; if forward holds it otherwise than as a module, give it requires_grad"),
                stacklevel=2,
            )
        recorded = [] if uses is None else uses.recorded
        act_otherwise = max(entries) > uses_reaching  # parameters act where the rule does not see them
        by_other_outputs = uses is not None and any(node in nodes for node in uses.other_outputs)
        if layer.rule is None or act_otherwise or by_other_outputs or any(one is None for one in recorded):
            traced[layer.name] = TracedLayer.without_rule(layer, model, reached=any(entries))
        elif uses is None:  # never called, so that its kernel is zero and its factors are empty
            traced[layer.name] = TracedLayer(layer, uses=1, positions=1, d=0, m=0, reached=False)
        else:
            positions = 0
            for one, shape in zip(recorded, uses.output_shapes, strict=True):
                assert one is not None
                a, g = layer.rule.factors(layer.module, one, call.output.new_zeros(1, *shape))
                positions += a.shape[1]
            traced[layer.name] = TracedLayer(layer, len(edges), positions, a.shape[2], g.shape[3], uses_reaching > 0)
    order = [*call.uses, *(name for name in traced if name not in call.uses)]
    return Trace([traced[name] for name in order], call.output.shape[1])
