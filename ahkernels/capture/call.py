"""One call of the model: it records the inputs that the rules need, and where the gradients of layers will arrive.

The call is one of a twin of the model, whose layers record themselves in their forward: they see their input after all
hooks, and mark their output by a gradient edge before any hook or in-place operation changes it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils._pytree import tree_leaves

from ahkernels.capture.batch import Batch
from ahkernels.capture.forward import Forward
from ahkernels.capture.joined import through_one_tensor
from ahkernels.capture.rules import Rule, has_all_outputs
from ahkernels.capture.rules.in_graph import Consumers, GraphRule, uses_in_graph
from ahkernels.capture.rules.own_jacobian import OwnJacobianRule
from ahkernels.capture.selection import Layer
from ahkernels.capture.twin import Twin
from ahkernels.precision import coarsest


@dataclass
class Uses:
    """The uses of one layer in a call of the model, in their order.

    Attributes:
        recorded: What the layer's rule keeps of the input of each use, or has found of it in the graph; None where the
            rule does not apply or the samples do not come first.
        edges: The gradient edge at the output of each use, or at a tensor with the same numbers in another shape.
        output_shapes: The shape of the output of each use.
        other_outputs: Graph nodes of further outputs, such as the weights of an attention, whose gradients the rule
            does not account for. A rule that does has all outputs joined to one.
        edges_inside: How many edges each use has into a leaf, by the id of the leaf; one for all that are not listed.
        folded: Whether a use has several rows for each sample. It is not known whether they come one after the other.
    """

    recorded: list[Any] = field(default_factory=list)
    edges: list[GradientEdge] = field(default_factory=list)
    output_shapes: list[tuple[int, ...]] = field(default_factory=list)
    other_outputs: list[Node] = field(default_factory=list)
    edges_inside: list[dict[int, int]] = field(default_factory=list)
    folded: bool = False

    def no_gradient(self, use: int, r: int) -> Tensor:
        """Zeros [r, *output shape] as the gradients at the output of a use."""
        edge, shape = self.edges[use], self.output_shapes[use]
        of_output = edge.node._input_metadata[edge.output_nr]
        return torch.zeros(1, dtype=of_output.dtype, device=of_output.device).expand(r, *shape)


@dataclass
class Call:
    """A recorded call of the model.

    Attributes:
        output: f(x) [n, o].
        uses: The uses of each layer by its name, in the order of first use.
        leaves: The parameters of the twin by name.
        modules: The modules of the twin whose calls are the uses, by the names of the layers.
    """

    output: Tensor
    uses: dict[str, Uses]
    leaves: dict[str, Tensor]
    modules: dict[str, nn.Module]

    @property
    def shapes(self) -> Hashable:
        """The layers in the order of first use, with the shapes of what was recorded of each use and of its output."""
        return tuple(
            (name, tuple((_shapes(one), shape) for one, shape in zip(uses.recorded, uses.output_shapes, strict=False)))
            for name, uses in self.uses.items()
        )

    @functools.cached_property
    def graph(self) -> tuple[set[Node], dict[int, int]]:
        """The nodes of the graph of the output, and the number of edges into each leaf by the id of the leaf."""
        return nodes_reaching(self.output)

    @property
    def coarsest_dtype(self) -> torch.dtype:
        """The floating-point dtype with the fewest digits on the way from parameters to outputs."""
        return coarsest({self.output.dtype}.union(*(_dtypes(node) for node in self.graph[0])))

    @functools.cached_property
    def dtypes_of_gradients(self) -> dict[int, torch.dtype]:
        """The dtype with the fewest digits on the way of gradients to each leaf, by the id of the leaf."""
        waiting: dict[Node, int] = {}  # the number of edges into each node that have not been followed yet
        for node in self.graph[0]:
            for following, _ in node.next_functions:
                if following is not None:
                    waiting[following] = waiting.get(following, 0) + 1
        found: dict[int, torch.dtype] = {}
        arriving: dict[Node, torch.dtype] = {}
        ready = [] if self.output.grad_fn is None else [self.output.grad_fn]
        while ready:
            node = ready.pop()
            dtype = coarsest({arriving.pop(node, self.output.dtype), *_dtypes(node)})
            variable = getattr(node, "variable", None)
            if variable is not None:
                found[id(variable)] = dtype
            for following, _ in node.next_functions:
                if following is None:
                    continue
                arriving[following] = coarsest({dtype, arriving.get(following, dtype)})
                waiting[following] -= 1
                if waiting[following] == 0:
                    ready.append(following)
        return found

    @functools.cached_property
    def consumers(self) -> Consumers:
        """For each output of a node of the graph, the nodes that take it, and the places that it has there."""
        found: dict[tuple[Node, int], list[tuple[Node, int]]] = {}
        for node in self.graph[0]:
            for place, (of, nr) in enumerate(node.next_functions):
                if of is not None:
                    found.setdefault((of, nr), []).append((node, place))
        return found

    def edges(self, layer: Layer) -> list[GradientEdge]:
        """The gradient edges at the outputs of the layer's uses."""
        return self.uses[layer.name].edges if layer.name in self.uses else []

    def reaches(self, layer: Layer) -> bool:
        """Whether the output depends on a parameter of the layer."""
        return any(id(self.leaves[name]) in self.graph[1] for name in layer.parameters)

    def by_uses_alone(self, layer: Layer) -> bool:
        """Whether the layer's parameters act on the output by its recorded uses alone, as its rule has it."""
        nodes, into_leaf = self.graph
        uses = self.uses.get(layer.name, Uses())
        if any(one is None for one in uses.recorded):
            return False
        inside = [of_use for edge, of_use in zip(uses.edges, uses.edges_inside, strict=True) if edge.node in nodes]
        if inside and isinstance(layer.rule, OwnJacobianRule):
            return True  # a use may take a parameter several times, and give out its input, too
        if any(node in nodes for node in uses.other_outputs):
            return False
        leaves = [id(self.leaves[name]) for name in layer.parameters]
        return all(into_leaf.get(leaf, 0) <= sum(of_use.get(leaf, 1) for of_use in inside) for leaf in leaves)

    def find_in_graph(self, layer: Layer) -> None:
        """Notes the uses of a layer from the graph."""
        leaves = [self.leaves[name] for name in layer.parameters]
        found = uses_in_graph(leaves, self.consumers, len(self.output))
        if found is None:
            self.uses[layer.name] = Uses(recorded=[None])
        elif found:
            edges, shapes = [one.edge for one in found], [one.output_shape for one in found]
            self.uses[layer.name] = Uses([*found], edges, shapes, edges_inside=[{} for _ in found])


def call_model(
    forward: Forward,
    twin: Twin,
    x: Batch,
    layers: Sequence[Layer],
    *,
    observer: AbstractContextManager[object] | None = None,
) -> Call:
    """Runs a twin of the model on x and records the layers.

    Args:
        forward: How the model is called.
        twin: A twin that has not been called before.
        x: Its inputs.
        layers: The layers to record.
        observer: A context that is entered for the call.

    Returns:
        The recorded call.

    Raises:
        ValueError: If there are no outputs [n, o], or a layer is called without gradients.
        TypeError: If a rule records something else than tensors.
    """
    recorder = _Recorder(len(x))
    modules = {layer.name: twin.of(layer.module) for layer in layers}
    for layer in layers:
        recorder.attach(modules[layer.name], layer)
    with observer or nullcontext():
        output = forward(twin.model, x)
    recorder.close()
    _require_gradients(output)
    call = Call(output, recorder.uses, dict(twin.model.named_parameters()), modules)
    for layer in layers:
        if isinstance(layer.rule, GraphRule):
            call.find_in_graph(layer)
    return call


@contextmanager
def explained_for_one(forward: Forward, new_twin: Callable[[], Twin], x: Batch) -> Iterator[None]:
    """Raises ValueError for an error in a call with a single sample if the model takes two copies of it.

    Args:
        forward: How the model is called.
        new_twin: Makes a twin of the model.
        x: What it is called with; with several samples nothing is done.
    """
    try:
        yield
    except Exception as error:
        if len(x) > 1:
            raise
        try:
            forward(new_twin().model, x[[0, 0]])
        except Exception:  # the error is that of the model
            raise error from None
        raise ValueError(
            "model: expected model(x) to be a tensor [1, o] for one sample, got an error, and none for two samples; a "
            ".squeeze() without a dimension, say, removes that of a single sample; write .squeeze(1)"
        ) from error


def _require_gradients(output: Tensor) -> None:
    if not output.requires_grad:
        raise ValueError(
            "model: expected model(x) to depend on parameters with gradients, got an output without (from detach(), or "
            "under torch.no_grad() in forward); take these out of forward"
        )


class _Recorder:
    """Records the uses of layers in a call with n samples.

    Attributes:
        uses: The uses of each layer by its name, in the order of first use.
    """

    def __init__(self, n: int) -> None:
        self.n, self._open = n, True
        self.uses: dict[str, Uses] = {}
        self._attached: list[tuple[nn.Module, Any]] = []

    def attach(self, module: nn.Module, layer: Layer) -> None:
        """Has a module of the twin record its calls as uses of a layer."""
        if isinstance(module, torch.jit.ScriptModule):
            return
        self._attached.append((module, vars(module).get("forward")))
        vars(module)["forward"] = _RecordedForward(self, module, layer)

    def call(self, module: nn.Module, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls a module's forward and records it."""
        if self._open:
            self.uses.setdefault(layer.name, Uses())
        outputs = forward(*args, **kwargs)
        if self._open and layer.rule is not None and not isinstance(layer.rule, GraphRule):
            return self._record(module, layer, layer.rule, args, kwargs, outputs)
        return outputs

    def close(self) -> None:
        """Ends the call: checkpoints call layers once more in the backward pass."""
        self._open = False
        for module, own in reversed(self._attached):
            if own is None:  # a module and its forward, which refer to one another, would outlive the twin
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = own
        self._attached.clear()

    def _record(
        self, module: nn.Module, layer: Layer, rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
    ) -> Any:
        """Records a call with these outputs, and returns what the model gets for them."""
        output, *others = outputs if isinstance(outputs, tuple) else (outputs,)
        seen = self.uses[layer.name]
        # Samples are hidden under torch.vmap, and in packed sequences.
        if not isinstance(output, Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(output):
            seen.recorded.append(None)
            return outputs
        if not output.requires_grad:
            if layer.doubtful:
                seen.recorded.append(None)
                return outputs
            raise ValueError(
                f"model: expected gradients to flow through layer {layer.name!r}, got a call of it without "
                f"gradients (under torch.no_grad(), say); write layers=[...] without {layer.name!r}"
            )
        try:
            with torch.no_grad():
                recorded = _kept(rule.record(module, args, kwargs))
        except Exception:
            if not layer.doubtful:
                raise
            recorded = None  # of a module with other arguments, say
        if not isinstance(recorded, (Tensor, tuple, type(None))):
            raise TypeError(
                f"rule: expected record() for layer {layer.name!r} to return a tensor, a tuple of them or None, "
                f"got {type(recorded).__name__}"
            )
        inside: dict[int, int] = {}
        if recorded is not None and has_all_outputs(rule):
            output, outputs = through_one_tensor(outputs, rule.sample_dimensions(module))
            others, inside = [], nodes_reaching(output, _nodes_of((args, kwargs)))[1]
        rows = _rows(recorded, output, self.n)
        seen.folded |= rows > 1
        seen.recorded.append(recorded if rows > 0 else None)
        seen.edges.append(get_gradient_edge(_original(output)))
        seen.output_shapes.append(tuple(output.shape))
        seen.other_outputs += [o.grad_fn for o in others if isinstance(o, Tensor) and o.grad_fn is not None]
        seen.edges_inside.append(inside)
        return outputs


class _RecordedForward:
    """The forward of a module of the twin: it looks like the module's own one, and a copy of the module has that."""

    def __init__(self, recorder: _Recorder, module: nn.Module, layer: Layer) -> None:
        self.recorder, self.module, self.layer = recorder, module, layer
        self.__wrapped__: Callable[..., Any] = module.forward  # for its signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.recorder.call(self.module, self.layer, self.__wrapped__, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)  # a method of the module becomes one of its copy


def _original(output: Tensor) -> Tensor:
    """The tensor of which an output is another view, number by number, or else the output.

    An in-place operation on a view takes the node of the view out of the graph, and leaves that of the original there.
    A linear layer on tokens returns a view, as an instance norm does.
    """
    original = output._base
    if original is None or original.grad_fn is None or original.numel() != output.numel():
        return output
    return original if original.is_contiguous() and output.is_contiguous() else output


def _rows(recorded: Any, output: Tensor, n: int) -> int:
    """How many rows of a use there are for each of n samples in the first dimension; 0 where it has no samples."""
    first = (recorded[0] if recorded else None) if isinstance(recorded, tuple) else recorded
    if first is None or first.dim() == 0 or output.dim() == 0 or first.shape[0] != output.shape[0]:
        return 0
    return int(first.shape[0]) // n if first.shape[0] % n == 0 else 0


def _kept(recorded: Any) -> Any:
    """Copies what was recorded, so that later in-place operations do not reach it."""
    if isinstance(recorded, tuple):
        return tuple(_kept(one) for one in recorded)
    return recorded.clone() if isinstance(recorded, Tensor) else recorded


def _shapes(recorded: Any) -> Hashable:
    return tuple(tuple(one.shape) for one in tree_leaves(recorded) if isinstance(one, Tensor))


def _dtypes(node: Node) -> set[torch.dtype]:
    """The floating-point dtypes of the gradients that a node takes."""
    return {of.dtype for of in node._input_metadata if of.dtype.is_floating_point}


def _nodes_of(arguments: Any) -> set[Node]:
    """The nodes that computed the tensors among arguments, or that stand for them where they are leaves."""
    tensors = [one for one in tree_leaves(arguments) if isinstance(one, Tensor) and one.requires_grad]
    return {get_gradient_edge(one).node for one in tensors}


def nodes_reaching(output: Tensor, beyond: Set[Node] = frozenset()) -> tuple[set[Node], dict[int, int]]:
    """Collects the nodes of the graph of a tensor.

    Args:
        output: The tensor.
        beyond: Nodes where the graph ends, which are no part of it.

    Returns:
        The nodes, and the number of edges into each leaf by the id of the leaf.
    """
    seen: set[Node] = set()
    into_leaf: dict[int, int] = {}
    stack = [] if output.grad_fn is None else [output.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following is None or following in beyond:
                continue
            variable = getattr(following, "variable", None)
            if variable is not None:
                into_leaf[id(variable)] = into_leaf.get(id(variable), 0) + 1
            stack.append(following)
    return seen, into_leaf
