"""The moments of kernels: what an alignment with labels is made of."""

from __future__ import annotations

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
    """The moments of q kernels over the same rows, float64 [q] each, on the device of their factors.

    Attributes are those of `KernelMoments`.
    """

    inner_product: Tensor
    squared_norm: Tensor
    trace: Tensor
    sum: Tensor

    def of_each(self) -> list[KernelMoments]:
        """The moments of each kernel as numbers, which waits for the device."""
        return [KernelMoments(*row) for row in torch.stack(tuple(self), 1).tolist()]
