"""One call of the model: what the rules of its layers need of their inputs, and where their gradients will arrive.

Parameters are replaced by fresh leaves for the call, so that gradients flow even through frozen layers and no hook or
`.grad` of the model's own parameters is touched. A gradient edge marks a layer's output before anything later, such
as an in-place activation, changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ahkernels.capture.rules import Rule
from ahkernels.capture.selection import Layer


@dataclass
class Uses:
    """The uses of one layer in a call, in their order."""

    # What the layer's rule keeps of each, [n, ...]; None where it does not apply or the samples do not come first.
    recorded: list[Tensor | None] = field(default_factory=list)
    edges: list[GradientEdge] = field(default_factory=list)
    output_shapes: list[tuple[int, ...]] = field(default_factory=list)


@dataclass
class Call:
    """The output [n, o] of a call, the layers' uses by name in the order of first use, and its leaves by name."""

    output: Tensor
    uses: dict[str, Uses]
    leaves: dict[str, Tensor]


def call_model(model: nn.Module, x: Tensor, layers: Sequence[Layer]) -> Call:
    """Runs the model on x and records the layers; the hooks it needs are gone when it returns or raises.

    Raises:
        ValueError: where the output is no tensor [n, o] with o > 0, or a layer is called without gradients.
    """
    uses: dict[str, Uses] = {}
    handles = []

    def order(layer: Layer) -> Any:
        def remember(*_: Any) -> None:
            uses.setdefault(layer.name, Uses())

        return remember

    def recorder(layer: Layer, rule: Rule) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if not output.requires_grad:
                raise ValueError(
                    f"model: expected gradients to flow through layer {layer.name!r}, got a call of it without "
                    "gradients (under torch.no_grad(), say); leave the layer out with layers="
                )
            seen = uses.setdefault(layer.name, Uses())
            inputs = tuple(_detached(value) for value in (*args, *kwargs.values()))
            with torch.no_grad():
                # Later in-place operations must not reach it.
                recorded = rule.record(module, inputs)
            applies = recorded is not None and len(recorded) == len(output) == len(x)
            seen.recorded.append(recorded.clone() if recorded is not None and applies else None)
            seen.edges.append(get_gradient_edge(output))
            seen.output_shapes.append(tuple(output.shape))

        return record

    leaves = {name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters()}
    try:
        for layer in layers:
            # First of the module's hooks: it sees the output before any other hook replaces it.
            if layer.rule is None:
                handles.append(layer.module.register_forward_pre_hook(order(layer), prepend=True))
            else:
                hook = recorder(layer, layer.rule)
                handles.append(layer.module.register_forward_hook(hook, prepend=True, with_kwargs=True))
        output = torch.func.functional_call(model, leaves, (x.detach(),))
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != x.shape[0] or output.shape[1] == 0:
        got = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"model: expected model(x) to be a tensor [n, o] with n = {x.shape[0]}, got {got}")
    return Call(output, uses, leaves)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def nodes_reaching(output: Tensor) -> tuple[set[Node], dict[int, int]]:
    """Nodes of the graph of `output`, and for each leaf (by id) the number of edges into it."""
    seen: set[Node] = set()
    into_leaf: dict[int, int] = {}
    stack = [] if output.grad_fn is None else [output.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following is None:
                continue
            variable = getattr(following, "variable", None)
            if variable is not None:
                into_leaf[id(variable)] = into_leaf.get(id(variable), 0) + 1
            stack.append(following)
    return seen, into_leaf
