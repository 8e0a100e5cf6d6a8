"""Powers of two that bring factors near one, so that products of extreme ones neither overflow nor vanish in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def power_of_two(factor: Tensor, bias: float = 0.0) -> Tensor:
    """The power of two that brings the largest magnitude of the factor to [1, 2), a float64 scalar on its device.

    A bias is one more number of a forward factor, its square root. Within 2^-126 and 2^126, which fp32 and its
    inverse have; 1 for a factor of zeros.
    """
    return to_one(largest_magnitude(factor, bias))


def scales_of(forward: Tensor, backward: Tensor, bias: float) -> tuple[Tensor, Tensor, Tensor]:
    """The powers of two of a layer's factors, and what its kernel is multiplied by then.

    The latter is infinite for a kernel of zeros, which is the same at any scale.
    """
    largest_a, largest_g = largest_magnitude(forward, bias), largest_magnitude(backward)
    scale_a, scale_g = to_one(largest_a), to_one(largest_g)
    zero = (largest_a == 0) | (largest_g == 0)
    return scale_a, scale_g, (scale_a**2 * scale_g**2).masked_fill(zero, torch.inf)


def scale_of_largest(scales: Sequence[Tensor]) -> Tensor:
    """The scale of a kernel's largest layer, which all of its layers are computed with; 1 for zeros alone."""
    smallest = torch.stack(list(scales)).amin()
    return smallest.masked_fill(smallest.isinf(), 1.0)


def largest_magnitude(factor: Tensor, bias: float = 0.0) -> Tensor:
    """The largest magnitude in a factor with its bias, a float64 scalar on its device."""
    if factor.numel():
        low, high = factor.aminmax()
        return torch.maximum(-low, high).double().clamp(min=bias**0.5)
    return torch.full((), bias**0.5, dtype=torch.float64, device=factor.device)


def to_one(largest: Tensor) -> Tensor:
    """The power of two that brings a magnitude to [1, 2); see `power_of_two`."""
    exponent = (torch.frexp(largest).exponent.long() - 1).clamp(-126, 126)
    exponent = torch.where(largest > 0, exponent, 0)
    return (1023 - exponent).bitwise_left_shift(52).view(torch.float64)  # 2^-exponent by its bits, exactly
