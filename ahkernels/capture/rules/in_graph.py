"""The rule for parameters whose uses are read off the graph of a call, such as gamma in x * gamma.

No module has to be called for them. From a parameter on, the graph leads through operations on parameters alone (views,
slices, an exp, the standardisation of a weight) to where the result meets the samples: in a sum, a difference or a
product, in a copy for each sample, or as the weight or bias of a convolution. The gradient there is known for each
sample. What it is by the result is formed here, and taken back through the operations on parameters alone by autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional

from ahkernels.capture.guard import quietly_batched
from ahkernels.capture.route import jacobian
from ahkernels.capture.rules.convolution import ConvolutionRule

# For each output of a node, the nodes that take it and the place that it has among what they take.
Consumers: TypeAlias = Mapping[tuple[Node, int], Sequence[tuple[Node, int]]]

_CONVOLUTION = "ConvolutionBackward0"
# Numbers of gradients by one operation that are taken back at once.
_NUMBERS_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class GraphUse:
    """An operation at which a parameter, or what was computed from parameters alone, meets the samples.

    Attributes:
        edge: The gradient edge at the result of the operation.
        output_shape: The shape [n, ...] of the result.
        place: The place of what meets the samples among what the operation takes.
        met: The gradient edge at what meets the samples.
        shape: Its shape.
        leaf: The gradient edge at the parameter.
        columns: The place of the parameter in the Jacobian of the layer.
        parameters: The length of this Jacobian.
    """

    edge: GradientEdge
    output_shape: tuple[int, ...]
    place: int
    met: GradientEdge
    shape: tuple[int, ...]
    leaf: GradientEdge
    columns: slice
    parameters: int


def jacobian_of_uses(uses: Sequence[GraphUse], gradients: Sequence[Tensor]) -> Tensor:
    """Sums the Jacobian [r, n, parameters] of a layer over its uses.

    Args:
        uses: The uses of all parameters of the layer, at least one.
        gradients: The gradients at their results, [r, n, ...] each.
    """
    dtypes = [_metadata(use.met.node)[use.met.output_nr].dtype for use in uses]
    dtype = functools.reduce(torch.promote_types, dtypes)
    found = gradients[0].new_zeros(*gradients[0].shape[:2], uses[0].parameters, dtype=dtype)
    together: dict[tuple[Node, int], list[int]] = {}  # what meets the samples may come from several parameters
    for index, use in enumerate(uses):
        together.setdefault((use.edge.node, use.place), []).append(index)
    for indices in together.values():
        _add([uses[index] for index in indices], gradients[indices[0]], found.flatten(0, 1))
    return found


def _add(uses: Sequence[GraphUse], gradient: Tensor, found: Tensor) -> None:
    """Adds to a Jacobian [r n, parameters] the gradients by all parameters that meet the samples together."""
    node, met, shape = uses[0].edge.node, uses[0].met, uses[0].shape
    at_met = _MEETINGS[node.name()](node, uses[0].place, shape, gradient).flatten(0, 1)  # [r n, *shape]
    if met.node is uses[0].leaf.node:
        found[:, uses[0].columns] += at_met.reshape(len(found), -1)
        return
    at_met = at_met.to(_metadata(met.node)[met.output_nr].dtype)
    leaves, at_once = [use.leaf for use in uses], max(1, _NUMBERS_AT_ONCE // max(1, at_met[0].numel()))
    for begin in range(0, len(at_met), at_once):
        rows = slice(begin, begin + at_once)
        with quietly_batched:
            taken_back = torch.autograd.grad([met], leaves, [at_met[rows]], retain_graph=True, is_grads_batched=True)
        for use, by_parameter in zip(uses, taken_back, strict=True):
            found[rows, use.columns] += by_parameter.reshape(len(by_parameter), -1)


def _of_product(node: Any, place: int, shape: tuple[int, ...], gradient: Tensor) -> Tensor:
    # Autograd refuses to give out what has been changed in place since.
    other: Tensor = node._saved_self if place == 1 else node._saved_other
    return _summed(gradient * other.detach(), shape)


def _of_sum(node: Any, place: int, shape: tuple[int, ...], gradient: Tensor) -> Tensor:
    summed = _summed(gradient, shape)
    return summed * float(node._saved_alpha) if place == 1 else summed


def _of_difference(node: Any, place: int, shape: tuple[int, ...], gradient: Tensor) -> Tensor:
    return _of_sum(node, place, shape, -gradient if place == 1 else gradient)


def _of_copy(node: Any, place: int, shape: tuple[int, ...], gradient: Tensor) -> Tensor:
    return _summed(gradient, shape)


def _of_convolution(node: Any, place: int, shape: tuple[int, ...], gradient: Tensor) -> Tensor:
    if place == 2:
        return gradient.flatten(3).sum(3)
    padding = [size for before in reversed(node._saved_padding) for size in (before, before)]
    padded = functional.pad(node._saved_input.detach(), padding)
    options = {"stride": node._saved_stride, "dilation": node._saved_dilation, "groups": node._saved_groups}
    module = SimpleNamespace(kernel_size=shape[2:], bias=None, **options)
    a, g = ConvolutionRule().factors(module, padded, gradient)
    by_weight = g if a.shape[2] == 0 else jacobian(a, g, bias=False)
    return by_weight.reshape(*gradient.shape[:2], *shape)


def _summed(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sums values [r, n, ...] over the dimensions along which something has been broadcast, [r, n, *shape]."""
    own = (1,) * (values.dim() - 1 - len(shape)) + shape
    along = [dim + 1 for dim, size in enumerate(own) if dim > 0 and size == 1]
    return (values.sum(along) if along else values).reshape(*values.shape[:2], *shape)


# By the name of an operation that may meet the samples: the gradient [r, n, *shape] by what has a place and a shape
# among what it takes, from that by its result.
_MEETINGS: dict[str, Callable[[Any, int, tuple[int, ...], Tensor], Tensor]] = {
    "MulBackward0": _of_product,
    "AddBackward0": _of_sum,
    "SubBackward0": _of_difference,
    "ExpandBackward0": _of_copy,
    "RepeatBackward0": _of_copy,
    _CONVOLUTION: _of_convolution,
}


def uses_in_graph(parameters: Sequence[Tensor], consumers: Consumers, n: int) -> list[GraphUse] | None:
    """Finds where parameters meet n samples.

    Args:
        parameters: The parameters of a layer.
        consumers: Those in the graph of the output.
        n: The number of samples.

    Returns:
        All uses; None if a parameter is used in any other way.
    """
    found: list[GraphUse] = []
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
                if _meets(node, place, shape, result, n):
                    own = edge, shape, leaf, slice(begin, end), total
                    found.append(GraphUse(GradientEdge(node, 0), result, place, *own))
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


def _meets(node: Any, place: int, shape: tuple[int, ...], result: tuple[int, ...], n: int) -> bool:
    """Whether an operation has what it takes at a place meet the samples, the first dimension of its result."""
    if node.name() not in _MEETINGS or result[:1] != (n,):
        return False
    if node.name() == _CONVOLUTION:
        return place > 0 and not node._saved_transposed
    own = (1,) * (len(result) - len(shape)) + shape
    return own[0] == 1 and all(size in (1, whole) for size, whole in zip(own, result, strict=True))


def _may_be_of_parameters(shape: tuple[int, ...], result: tuple[int, ...], n: int) -> bool:
    """Whether a result may still be one of parameters alone, since it does not come to have the samples first."""
    return n == 1 or result[:1] != (n,) or shape[:1] == (n,)


class GraphRule:
    """The Jacobian of parameters whose uses are known from the graph."""

    def parameters(self, module: nn.Module) -> list[str]:
        """Lists the parameters that the container itself has."""
        return [name for name, _ in module.named_parameters(recurse=False)]

    def record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keeps nothing of a call, since uses are found in its graph."""

    def factors(self, module: nn.Module, recorded: GraphUse, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Forms an empty forward factor [n, 1, 0] and the Jacobian [r, n, 1, parameters] of one use."""
        return gradient.new_empty(gradient.shape[1], 1, 0), jacobian_of_uses([recorded], [gradient]).unsqueeze(2)

    def has_bias(self, module: nn.Module) -> bool:
        """Returns True always, since the forward Gram of a Jacobian is all ones."""
        return True


GRAPH = GraphRule()
