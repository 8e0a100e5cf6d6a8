"""One call on one sample, before any real work: order, number and sizes of the layers' uses."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ahkernels.capture.call import call_model, nodes_reaching
from ahkernels.capture.selection import Layer


@dataclass(frozen=True)
class TracedLayer:
    """A layer with what the model does with it.

    Attributes:
        layer: The layer.
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


@dataclass(frozen=True)
class Trace:
    """The layers in the order of their first use, and the number of outputs."""

    layers: list[TracedLayer]
    outputs: int


def trace_model(model: nn.Module, x: Tensor, layers: Sequence[Layer]) -> Trace:
    """Calls the model on the first sample of x.

    Raises:
        NotImplementedError: where a layer's parameters enter the output in another way than through its calls.
        ValueError: see `call_model`.
    """
    call = call_model(model, x[:1], layers)
    nodes, into_leaf = nodes_reaching(call.output)
    traced: dict[str, TracedLayer] = {}
    for layer in layers:
        uses = call.uses.get(layer.name)
        edges = uses.edges if uses is not None else []
        reaching = sum(edge.node in nodes for edge in edges)
        for own in layer.rule.parameters(layer.module):
            leaf = call.leaves[f"{layer.name}.{own}" if layer.name else own]
            if into_leaf.get(id(leaf), 0) > reaching:
                raise NotImplementedError(
                    f"layers: expected the parameters of {layer.name!r} to act through calls of the module alone, got "
                    f"{own!r} used {into_leaf[id(leaf)]} times in the graph of the output but {reaching} times by the "
                    "module; leave the layer out with layers="
                )
        if not reaching:
            warnings.warn(
                f"layer {layer.name!r} does not reach the output of the model: its kernel is zero",
                stacklevel=2,
            )
        if uses is None:  # nothing to capture, and no input to measure: a zero kernel of a single number
            traced[layer.name] = TracedLayer(layer, 1, 1, 0, 0, False)
            continue
        positions = 0
        for recorded, shape in zip(uses.recorded, uses.output_shapes, strict=True):
            gradient = torch.empty((1, *shape), device="meta")
            a, g = layer.rule.factors(layer.module, recorded.to("meta"), gradient)
            positions += a.shape[1]
        traced[layer.name] = TracedLayer(layer, len(edges), positions, a.shape[2], g.shape[3], reaching > 0)
    order = [*call.uses, *(name for name in traced if name not in call.uses)]
    return Trace([traced[name] for name in order], call.output.shape[1])
