"""Powers of two that bring factors near one, so that products of extreme ones neither overflow nor vanish in fp32.

Those of all layers come together, since each number by itself would take as many operations on a device as all do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ahkernels.ops.batch import Layer

_MANTISSA_BITS = 52
_BIAS = 1023
_EXPONENTS = 0x7FF << _MANTISSA_BITS  # of positive float64 numbers
_MOST = 126  # fp32 and its inverse have 2^-126 and 2^126


class Scales(NamedTuple):
    """What layers are multiplied by, float64 [layers] each on their device.

    Attributes:
        forward: The powers of two of the forward factors.
        forward_gram: Of the forward Grams in turn, and of the biases.
        backward: The powers of two of the backward factors.
        kernel: Of the kernels in turn; infinite for a kernel of zeros, which is the same at any scale.
    """

    forward: Tensor
    forward_gram: Tensor
    backward: Tensor
    kernel: Tensor

    @property
    def of_sum(self) -> Tensor:
        """That of the sum of the layers, a scalar: of the largest of them, or 1 for zeros alone."""
        return finite(self.kernel.amin())

    def of_each(self) -> list[Scales]:
        """Those of each layer, scalars on the device."""
        return [Scales(*one) for one in zip(*(part.unbind() for part in self), strict=True)]


def scales_of_layers(layers: Sequence[Layer]) -> Scales:
    """The powers of two that bring the largest magnitude of each factor to [1, 2).

    A bias is one more number of a forward factor, its square root.
    """
    largest = largest_magnitudes(layers)
    scales = to_one(largest)
    forward, backward = scales.unbind()
    forward_gram, backward_gram = scales.square().unbind()
    kernel = (forward_gram * backward_gram).masked_fill_((largest == 0).any(0), torch.inf)
    return Scales(forward, forward_gram, backward, kernel)


def without_scales(products: Tensor, scales: Tensor) -> Tensor:
    """Inner products [..., q, q] of kernels without their scales [q], exactly symmetric, from those below the diagonal.

    One scale is taken off after the other: the product of extreme ones can leave the range of float64.
    """
    lower = (products / scales / scales[:, None]).tril()
    return lower + lower.tril(-1).mT


def finite(scales: Tensor) -> Tensor:
    """Scales of kernels with 1 for those of zeros."""
    return scales.masked_fill(scales.isinf(), 1.0)


def largest_magnitudes(layers: Sequence[Layer]) -> Tensor:
    """The largest magnitude in each forward factor with its bias and in each backward factor, float64 [2, layers]."""
    factors = [one.forward for one in layers] + [one.backward for one in layers]
    limits = [limit for one in factors for limit in (one.aminmax() if one.numel() else (one.new_zeros(()),) * 2)]
    largest = torch.stack(limits).view(2, len(layers), 2).double().abs_().amax(2)
    for index, layer in enumerate(layers):
        if layer.bias:
            largest[0, index].clamp_(min=layer.bias**0.5)
    return largest


def to_one(largest: Tensor, most: int = _MOST) -> Tensor:
    """The powers of two that bring magnitudes to [1, 2), within 2^-most and 2^most; 1 for zero."""
    low, high = ((_BIAS + exponent) << _MANTISSA_BITS for exponent in (-most, most))
    powers = largest.view(torch.int64).bitwise_and(_EXPONENTS).clamp_(low, high)  # 2^exponent by its bits, exactly
    inverse = torch.rsub(powers, 2 * _BIAS << _MANTISSA_BITS).view(torch.float64)  # 2^-exponent
    return inverse.masked_fill_(largest == 0, 1.0)
