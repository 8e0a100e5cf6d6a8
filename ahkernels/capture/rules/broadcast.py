"""The rule for parameters of a container that are broadcast over the samples, as in x * gamma or x + positions.

No module is called for them. Where they are used is read off the graph of a recorded call: from a parameter on, through
operations on parameters alone (views, slices, an exp), to where a sum, a difference, a product or a copy for each
sample has it meet the samples. The gradient there is known for each sample. It is summed over what the parameter is
broadcast to, and taken back through the operations on parameters alone by autograd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ahkernels.capture.guard import quietly_batched

# For each output of a node, the nodes that take it and the place that it has among what they take.
Consumers: TypeAlias = Mapping[tuple[Node, int], Sequence[tuple[Node, int]]]

_PRODUCT = "MulBackward0"
_SIGNS = {"AddBackward0": 1, "SubBackward0": -1}  # of what they take second
_COPIES = ("ExpandBackward0", "RepeatBackward0")


@dataclass(frozen=True)
class BroadcastUse:
    """An operation at which a parameter, or what was computed from it alone, is broadcast over the samples.

    Attributes:
        edge: The gradient edge at the result.
        output_shape: The shape [n, ...] of the result.
        place: The place of what is broadcast among what the operation takes.
        broadcast: The gradient edge at what is broadcast.
        shape: Its shape.
        leaf: The gradient edge at the parameter.
        columns: The place of the parameter in the Jacobian of the layer.
        parameters: The length of this Jacobian.
    """

    edge: GradientEdge
    output_shape: tuple[int, ...]
    place: int
    broadcast: GradientEdge
    shape: tuple[int, ...]
    leaf: GradientEdge
    columns: slice
    parameters: int

    def jacobian(self, gradient: Tensor) -> Tensor:
        """The Jacobian [r, n, parameters] of this use, from the gradient at the result [r, n, ...]."""
        dtype = _metadata(self.broadcast.node)[self.broadcast.output_nr].dtype
        at_broadcast = self._summed(self._at_place(gradient)).to(dtype)
        if self.broadcast.node is not self.leaf.node:
            with quietly_batched:
                (at_broadcast,) = torch.autograd.grad(
                    [self.broadcast], [self.leaf], [at_broadcast], retain_graph=True, is_grads_batched=True
                )
        r, n = gradient.shape[:2]
        found = at_broadcast.new_zeros(r, n, self.parameters)
        found[:, :, self.columns] = at_broadcast.reshape(r, n, -1)
        return found

    def _at_place(self, gradient: Tensor) -> Tensor:
        """The gradient at what is broadcast, before it is summed."""
        node: Any = self.edge.node
        if node.name() == _PRODUCT:  # autograd refuses to give out what has been changed in place since
            other: Tensor = node._saved_self if self.place == 1 else node._saved_other
            return gradient * other.detach()
        if node.name() in _SIGNS and self.place == 1:
            return gradient * float(_SIGNS[node.name()] * node._saved_alpha)
        return gradient

    def _summed(self, values: Tensor) -> Tensor:
        """Sums values [r, n, ...] over the dimensions along which a parameter is broadcast, [r n, *shape]."""
        own = (1,) * (len(self.output_shape) - len(self.shape)) + self.shape
        along = [dim + 1 for dim, size in enumerate(own) if dim > 0 and size == 1]
        return (values.sum(along) if along else values).reshape(-1, *self.shape)


def uses_in_graph(parameters: Sequence[Tensor], consumers: Consumers, n: int) -> list[BroadcastUse] | None:
    """Finds where parameters are broadcast over n samples.

    Args:
        parameters: The parameters of a layer.
        consumers: Those in the graph of the output.
        n: The number of samples.

    Returns:
        All uses; None if a parameter is used in any other way.
    """
    found: list[BroadcastUse] = []
    total = sum(parameter.numel() for parameter in parameters)
    end = 0
    for parameter in parameters:
        begin, end = end, end + parameter.numel()
        leaf = get_gradient_edge(parameter)
        reached = [(leaf, tuple(parameter.shape))]
        seen: set[Node] = set()
        while reached:
            edge, shape = reached.pop()
            for node, place in consumers.get((edge.node, edge.output_nr), ()):
                result = tuple(_metadata(node)[0].shape)
                if _meets(node, shape, result, n):
                    own = edge, shape, leaf, slice(begin, end), total
                    found.append(BroadcastUse(GradientEdge(node, 0), result, place, *own))
                elif not _may_be_of_parameters(shape, result, n):
                    return None
                elif node not in seen:
                    seen.add(node)
                    outputs = [(GradientEdge(node, nr), tuple(one.shape)) for nr, one in enumerate(_metadata(node))]
                    if not any((node, one.output_nr) in consumers for one, _ in outputs):  # the output of the model
                        return None
                    reached += outputs
    return found


def _metadata(node: Any) -> Sequence[Any]:
    """What is known of the results of an operation: their shapes and dtypes."""
    found: Sequence[Any] = node._input_metadata
    return found


def _meets(node: Node, shape: tuple[int, ...], result: tuple[int, ...], n: int) -> bool:
    """Whether an operation broadcasts what has a shape over the first dimension of its result, the samples."""
    if node.name() not in (_PRODUCT, *_SIGNS, *_COPIES) or result[:1] != (n,):
        return False
    own = (1,) * (len(result) - len(shape)) + shape
    return own[0] == 1 and all(size in (1, whole) for size, whole in zip(own, result, strict=True))


def _may_be_of_parameters(shape: tuple[int, ...], result: tuple[int, ...], n: int) -> bool:
    """Whether a result may still be one of parameters alone, since it does not come to have the samples first."""
    return n == 1 or result[:1] != (n,) or shape[:1] == (n,)


class BroadcastRule:
    """The Jacobian of parameters that are broadcast over the samples."""

    def parameters(self, module: nn.Module) -> list[str]:
        """Lists the parameters that the container itself has."""
        return [name for name, _ in module.named_parameters(recurse=False)]

    def record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keeps nothing of a call, since uses are found in its graph."""

    def factors(self, module: nn.Module, recorded: BroadcastUse, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Forms an empty forward factor [n, 1, 0] and the Jacobian [r, n, 1, parameters] of one use."""
        return gradient.new_empty(gradient.shape[1], 1, 0), recorded.jacobian(gradient).unsqueeze(2)

    def has_bias(self, module: nn.Module) -> bool:
        """Returns True always, since the forward Gram of a Jacobian is all ones."""
        return True


BROADCAST = BroadcastRule()
