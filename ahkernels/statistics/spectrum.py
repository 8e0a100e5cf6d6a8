"""The spectrum of a tangent kernel from products with it, and what of the alignment it explains (appendix G).

With the eigenvalues lambda_1 >= lambda_2 >= ... of C K C, its stable rank is R = sum lambda_i^2 / lambda_1^2 and its
label correlation sum_i lambda_i / lambda_1 <u_i, y~>^2, so that the alignment is correlation / sqrt(R).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from ahkernels.kernel import TangentKernel
from ahkernels.statistics.cka import Labels, Measured, finish, measure

# Kernels of up to so many rows are formed, from products with the identity: cheaper than any iteration.
_DENSE_ROWS = 512


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """The largest eigenvalues of a kernel and their eigenvectors.

    Attributes:
        values: float64 [k], from the largest down.
        vectors: float64 [n*o, k], orthonormal columns.
        residuals: float64 [k], the norms of K u - lambda u.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


def eigenpairs(
    kernel: TangentKernel, k: int, *, centered: bool = True, tolerance: float = 1e-10, seed: int = 0
) -> Eigenpairs:
    """The k largest eigenvalues of C K C (or K) with their eigenvectors, without K in memory.

    By the implicitly restarted Lanczos method of ARPACK, with products in float64.

    Args:
        kernel: A tangent kernel.
        k: How many, 1 to the number of rows.
        centered: Whether of C K C, as in the paper, or of K itself.
        tolerance: Bound on each residual ||K u - lambda u||, relative to the largest eigenvalue.
        seed: Of the starting vector.

    Raises:
        ValueError: where k or tolerance is out of range.
        RuntimeError: where the iteration does not reach the tolerance.
    """
    rows = kernel.shape[0]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= rows:
        raise ValueError(f"k: expected a whole number from 1 to {rows}, the rows of the kernel, got {k!r}")
    if not isinstance(tolerance, (int, float)) or not 0 < tolerance < 1:
        raise ValueError(f"tolerance: expected a number between 0 and 1, got {tolerance!r}")
    operator = kernel.linear_operator(centered=centered)
    start = np.random.default_rng(seed).standard_normal(rows)
    rounding = 1e-14 * kernel.trace()
    if rows <= _DENSE_ROWS or 3 * k > rows:
        dense = operator @ np.eye(rows)
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
    elif np.linalg.norm(operator @ start) <= rounding * np.linalg.norm(start):  # a zero kernel, or a constant one
        values, vectors = np.zeros(k), np.eye(rows, k)
    else:
        kept = min(rows, max(2 * k + 1, 40))
        values, vectors = eigsh(operator, k, which="LA", v0=start, tol=tolerance / 10, ncv=kept)
    order = np.argsort(values)[::-1][:k]
    values, vectors = values[order], vectors[:, order]
    residuals = np.linalg.norm(operator @ vectors - vectors * values, axis=0)
    largest = float(np.abs(values).max())
    if residuals.max() > max(tolerance, 1e-13 * math.sqrt(rows)) * largest + rounding:
        raise RuntimeError(
            f"eigenpairs: expected residuals of at most {tolerance:.1e} times the largest eigenvalue, got "
            f"{residuals.max() / largest:.1e}"
        )
    return Eigenpairs(*(torch.from_numpy(np.ascontiguousarray(one)) for one in (values, vectors, residuals)))


def eigenvalues(kernel: TangentKernel, k: int, *, centered: bool = True, tolerance: float = 1e-10) -> Tensor:
    """The k largest eigenvalues of C K C (or K), float64 [k] from the largest down; see `eigenpairs`."""
    return eigenpairs(kernel, k, centered=centered, tolerance=tolerance).values


def stable_rank(kernel: TangentKernel) -> float:
    """||C K C||_F^2 / lambda_1^2 (appendix G.1): from 1 to the rank of C K C; nan for a constant or zero kernel."""
    largest = _largest(kernel)
    norm = kernel.frobenius_norm()
    total = float(kernel.row_means().sum()) * kernel.shape[0]
    return (norm / largest) ** 2 if Measured.of(kernel).exceeds_rounding(norm, total) and largest > 0 else math.nan


def label_correlation(kernel: TangentKernel, y: Tensor) -> float:
    """sum_i lambda_i / lambda_1 <u_i, y~>^2 for normalised centered labels y~ (appendix G.1), in [0, 1].

    For n x n kernels ("trace", "sum") y~ y~^T is C Y Y^T C over its Frobenius norm. The alignment is this over the
    square root of the stable rank.

    Args:
        kernel: A tangent kernel.
        y: Class indices [n] or a target matrix [n, o].

    Returns:
        The correlation; nan, with a `DegenerateKernelWarning`, where the alignment is not defined.

    Raises:
        ValueError: for labels that do not fit; the message names `y`.
    """
    labels = Labels(kernel.outputs, y, kernel.n)
    numbers = measure([kernel], labels)[0].tolist()
    found = finish(Measured.of(kernel), numbers, labels)
    return math.nan if math.isnan(found.cka) else numbers[0] / _largest(kernel) / labels.norm


def _largest(kernel: TangentKernel) -> float:
    return float(eigenvalues(kernel, 1)[0])
