"""A square root of K: what is kept of a layer whose factors and Jacobian do not fit the memory budget.

K is summed up from parts of the Jacobian, or put together from the kernels between blocks of samples. Its root has the
same products of rows as the Jacobian, so that it takes the place of it. Sums are in float64, since the root of a number
has half of its digits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def add_products(total: Tensor, x: Tensor, y: Tensor, most_bytes: int) -> None:
    """Adds x y^T to a total in float64.

    Args:
        total: [k, k'], float64.
        x: [..., d], with k rows.
        y: [..., d], with k' rows.
        most_bytes: See `in_float64`.
    """
    for first, second in in_float64(x, y, most_bytes):
        total.addmm_(first.flatten(0, -2), second.flatten(0, -2).T)
        del first, second  # before the next ones


def in_float64(x: Tensor, y: Tensor, most_bytes: int) -> Iterator[tuple[Tensor, ...]]:
    """Yields the same columns of two tensors [..., d] in float64, contiguous and a slice at a time.

    Args:
        x: The first tensor.
        y: The second one, which may have other rows.
        most_bytes: The size of both slices; those of a single column may take more.
    """
    rows = sum(one[..., 0].numel() for one in (x, y) if one.shape[-1])
    width = max(1, most_bytes // (torch.float64.itemsize * max(1, rows)))
    for columns in zip(torch.split(x, width, -1), torch.split(y, width, -1), strict=True):
        yield tuple(one.to(torch.float64, memory_format=torch.contiguous_format).contiguous() for one in columns)


def square_root(kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix R with R R^T = K; all nan if there is nan or inf in K.

    Args:
        kernel: K [k, k], float64, of which what is on and above the diagonal is read.
        dtype: That of R [k, k].
    """
    if not bool(kernel.isfinite().all()):
        return torch.full_like(kernel, torch.nan, dtype=dtype)
    values, vectors = torch.linalg.eigh(kernel, UPLO="U")
    found: Tensor = vectors.mul_(values.clamp_(min=0).sqrt_()).to(dtype)  # rounding leaves small negative ones
    return found
