"""The moments of kernels: what an alignment with labels is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class KernelMoments(NamedTuple):
    """The moments of one kernel.

    Attributes:
        inner_product: <v, K v> with the centered labels v.
        squared_norm: ||C K C||_F^2.
        trace: The sum of the diagonal.
        sum: The sum of all entries, or with centering per output of the blocks on the diagonal.
    """

    inner_product: float
    squared_norm: float
    trace: float
    sum: float


class Moments(NamedTuple):
    """The moments of q kernels over the same rows with one centering, float64 [q] each, on their device.

    Attributes are those of `KernelMoments`.
    """

    inner_product: Tensor
    squared_norm: Tensor
    trace: Tensor
    sum: Tensor

    def stacked(self) -> Tensor:
        """All of them as [q, 4], in the order of the attributes."""
        return torch.stack(self, 1)

    def of_each(self) -> list[KernelMoments]:
        """The moments of each kernel as numbers, which waits for the device."""
        return [KernelMoments(*row) for row in self.stacked().tolist()]


def join(moments: Sequence[Moments]) -> Tensor:
    """Moments with one or two centerings as one tensor, [q, 4] or [q, 8]: what the op returns to the dispatcher."""
    return torch.cat([one.stacked() for one in moments], 1)


def separate(joined: Tensor) -> tuple[Moments, ...]:
    """The inverse of `join`."""
    columns = joined.unbind(1)
    width = len(Moments._fields)
    return tuple(Moments(*columns[begin : begin + width]) for begin in range(0, len(columns), width))
