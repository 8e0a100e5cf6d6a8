"""One call of the model: what the rules of its layers need of their inputs, and where their gradients will arrive.

Parameters are replaced by fresh leaves for the call, so that gradients flow even through frozen layers and no hook or
`.grad` of the model's own parameters is touched. A gradient edge marks a layer's output before anything later, such
as an in-place activation, changes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ahkernels.capture.rules import Recorded, Rule
from ahkernels.capture.selection import Layer


@dataclass
class Uses:
    """The uses of one layer in a call, in their order."""

    # What the layer's rule keeps of each; None where it does not apply or the samples do not come first.
    recorded: list[Recorded | None] = field(default_factory=list)
    edges: list[GradientEdge] = field(default_factory=list)
    output_shapes: list[tuple[int, ...]] = field(default_factory=list)
    # Of further outputs, such as the weights of an attention: rules know nothing of their gradients.
    other_outputs: list[Node] = field(default_factory=list)


@dataclass
class Call:
    """The output [n, o] of a call, the layers' uses by name in the order of first use, and its leaves by name."""

    output: Tensor
    uses: dict[str, Uses]
    leaves: dict[str, Tensor]


def call_model(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[Layer],
    *,
    parameters: Mapping[str, Tensor],
    guard: AbstractContextManager[object] | None = None,
) -> Call:
    """Runs the model on x and records the layers; the hooks it needs are gone when it returns or raises.

    Args:
        model: The network.
        x: [n, ...].
        layers: What to record.
        parameters: All of the model's, by name.
        guard: Entered for the call.

    Raises:
        ValueError: where the output is no tensor [n, o] with o > 0, or a layer is called without gradients.
        TypeError: where a rule records something else than tensors.
    """
    uses: dict[str, Uses] = {}
    handles = []

    def order(layer: Layer) -> Any:
        def remember(*_: Any) -> None:
            uses.setdefault(layer.name, Uses())

        return remember

    def recorder(layer: Layer, rule: Rule) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
            output, *others = outputs if isinstance(outputs, tuple) else (outputs,)
            if not output.requires_grad:
                raise ValueError(
                    f"model: expected gradients to flow through layer {layer.name!r}, got a call of it without "
                    "gradients (under torch.no_grad(), say); leave the layer out with layers="
                )
            seen = uses.setdefault(layer.name, Uses())
            with torch.no_grad():
                recorded = _kept(rule.record(module, args, kwargs))
            if not isinstance(recorded, (Tensor, tuple, type(None))):
                raise TypeError(
                    f"rule: expected record() for layer {layer.name!r} to return a tensor, a tuple of them or None, "
                    f"got {type(recorded).__name__}"
                )
            seen.recorded.append(recorded if _samples_first(recorded, output, len(x)) else None)
            seen.edges.append(get_gradient_edge(output))
            seen.output_shapes.append(tuple(output.shape))
            seen.other_outputs += [o.grad_fn for o in others if isinstance(o, Tensor) and o.grad_fn is not None]

        return record

    leaves = {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}
    try:
        for layer in layers:
            # First of the module's hooks: it sees the output before any other hook replaces it.
            if layer.rule is None:
                handles.append(layer.module.register_forward_pre_hook(order(layer), prepend=True))
            else:
                hook = recorder(layer, layer.rule)
                handles.append(layer.module.register_forward_hook(hook, prepend=True, with_kwargs=True))
        arguments = {**leaves, **copied_buffers(model)}, (x.detach(),)
        with guard or nullcontext():
            output = torch.func.functional_call(model, *arguments)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != x.shape[0] or output.shape[1] == 0:
        got = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"model: expected model(x) to be a tensor [n, o] with n = {x.shape[0]}, got {got}")
    return Call(output, uses, leaves)


def copied_buffers(model: nn.Module) -> dict[str, Tensor]:
    """For a call to change, such as running statistics."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def _samples_first(recorded: Recorded | None, output: Tensor, n: int) -> bool:
    first = recorded[0] if isinstance(recorded, tuple) else recorded
    return first is not None and first.shape[0] == output.shape[0] == n


def _kept(recorded: Any) -> Any:
    """Copies that later in-place operations do not reach."""
    if isinstance(recorded, tuple):
        return tuple(_kept(one) for one in recorded)
    return recorded.clone() if isinstance(recorded, Tensor) else recorded


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
