"""One call of the model: it records the inputs that the rules need, and where the gradients of layers will arrive.

Parameters are replaced by fresh leaves for the call, so that gradients flow even through frozen layers, and neither the
hooks nor the `.grad` of the model's own parameters are touched. A gradient edge marks a layer's output before anything
later, such as an in-place activation, changes it.
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
    """The uses of one layer in a call of the model, in their order.

    Attributes:
        recorded: What the layer's rule keeps of the input of each use; None where the rule does not apply or the
            samples do not come first.
        edges: The gradient edge at the output of each use.
        output_shapes: The shape of the output of each use.
        other_outputs: Graph nodes of further outputs, such as the weights of an attention. No rule accounts for their
            gradients.
    """

    recorded: list[Recorded | None] = field(default_factory=list)
    edges: list[GradientEdge] = field(default_factory=list)
    output_shapes: list[tuple[int, ...]] = field(default_factory=list)
    other_outputs: list[Node] = field(default_factory=list)


@dataclass
class Call:
    """A recorded call of the model.

    Attributes:
        output: f(x) [n, o].
        uses: The uses of each layer by its name, in the order of first use.
        leaves: The tensors that stood in for the parameters, by name.
    """

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
        x: Its inputs [n, ...].
        layers: The layers to record.
        parameters: All parameters of the model by name.
        guard: A context that is entered for the call.

    Returns:
        The recorded call.

    Raises:
        ValueError: If the output is not a tensor [n, o] with o > 0, or a layer is called without gradients.
        TypeError: If a rule records something else than tensors.
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
    """Copies the buffers of a model, such as running statistics, so that a call may change them."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def _samples_first(recorded: Recorded | None, output: Tensor, n: int) -> bool:
    first = recorded[0] if isinstance(recorded, tuple) else recorded
    return first is not None and first.shape[0] == output.shape[0] == n


def _kept(recorded: Any) -> Any:
    """Copies what was recorded, so that later in-place operations do not reach it."""
    if isinstance(recorded, tuple):
        return tuple(_kept(one) for one in recorded)
    return recorded.clone() if isinstance(recorded, Tensor) else recorded


def nodes_reaching(output: Tensor) -> tuple[set[Node], dict[int, int]]:
    """Collects the nodes of the graph of `output`, and the number of edges into each leaf by the id of the leaf."""
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
