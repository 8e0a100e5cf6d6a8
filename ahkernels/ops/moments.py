"""What an alignment is made of, for several kernels at once."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Moments(NamedTuple):
    """The moments of q kernels over the same rows, float64 [q] each, on the device of their factors.

    Attributes:
        inner_product: <v, K v> with the centered labels v.
        squared_norm: ||C K C||_F^2.
        trace: The sum of the diagonal.
        sum: The sum of all entries, or with centering per output of the blocks on the diagonal.
    """

    inner_product: Tensor
    squared_norm: Tensor
    trace: Tensor
    sum: Tensor
