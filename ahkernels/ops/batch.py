"""What the ops take: the layer factors of several kernels, flat as the dispatcher wants them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ahkernels.centering import Centering, near_constant
from ahkernels.factors import LayerFactors


class Layer(NamedTuple):
    """One layer of a kernel in a batch."""

    forward: Tensor
    backward: Tensor
    bias: float
    by_jacobian: bool


class KernelBatch(NamedTuple):
    """The layer factors of several kernels that one op takes, in the order of the arguments of every op.

    Lists have an entry for each layer, those of the first kernel first, then those of the second and so on. All layers
    have the same n, o and dtype.

    Attributes:
        forward: [n, s, d], the layer's input at each of its s positions.
        backward: [n, s, o, m], the gradient of each output with respect to the layer's pre-activations there.
        bias: 1.0 for a layer with a bias, else 0.0.
        by_jacobian: Whether the layer is contracted through its Jacobian, and not by pairs of positions.
        layers: For each kernel, the number of layers that it is the sum of.
    """

    forward: list[Tensor]
    backward: list[Tensor]
    bias: list[float]
    by_jacobian: list[bool]
    layers: list[int]

    @classmethod
    def of(cls, kernels: Sequence[Sequence[LayerFactors]]) -> KernelBatch:
        """The batch of some kernels, each given by the factors of its layers."""
        factors = [layer for kernel in kernels for layer in kernel]
        return cls(
            [layer.forward.detach() for layer in factors],
            [layer.backward.detach() for layer in factors],
            [float(layer.bias) for layer in factors],
            [layer.by_jacobian for layer in factors],
            [len(kernel) for kernel in kernels],
        )

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.backward[0].shape[0]

    @property
    def o(self) -> int:
        """Number of outputs."""
        return self.backward[0].shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the factors."""
        return self.backward[0].dtype

    @property
    def kernel_count(self) -> int:
        """Number of kernels."""
        return len(self.layers)

    def near_constant(self, centering: Centering) -> bool:
        """See `ahkernels.centering.near_constant`."""
        return near_constant(self.o, centering)

    def double(self) -> KernelBatch:
        """The batch with its factors in float64."""
        return self._replace(forward=[a.double() for a in self.forward], backward=[g.double() for g in self.backward])

    def kernels(self) -> list[list[Layer]]:
        """The layers of each kernel."""
        layers = map(Layer, self.forward, self.backward, self.bias, self.by_jacobian)
        return [[next(layers) for _ in range(count)] for count in self.layers]

    def split(self) -> list[KernelBatch]:
        """A batch for each kernel."""
        found, begin = [], 0
        for count in self.layers:
            end = begin + count
            lists = (
                self.forward[begin:end],
                self.backward[begin:end],
                self.bias[begin:end],
                self.by_jacobian[begin:end],
            )
            found.append(KernelBatch(*lists, [count]))
            begin = end
        return found


def flat(implementation: Callable[..., Any], check: Callable[..., None], batches: int = 1) -> Callable[..., Any]:
    """Makes an implementation that takes kernel batches first take an op's flat arguments instead, which are checked.

    Args:
        implementation: Takes `KernelBatch` as its first arguments.
        check: Takes the same arguments, and raises if they do not fit.
        batches: How many of them are batches.

    Returns:
        The function to register with the dispatcher.
    """
    width = len(KernelBatch._fields)

    @functools.wraps(implementation)
    def of_flat_arguments(*arguments: Any, **keywords: Any) -> Any:
        found = [KernelBatch(*arguments[i * width : (i + 1) * width]) for i in range(batches)]
        rest = arguments[batches * width :]
        check(*found, *rest, **keywords)
        return implementation(*found, *rest, **keywords)

    return of_flat_arguments
