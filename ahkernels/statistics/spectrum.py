"""The spectrum of a tangent kernel from products with it, and the parts that it splits the alignment into (appendix G).

With the eigenvalues lambda_1 >= lambda_2 >= ... of C K C, its stable rank is R = sum lambda_i^2 / lambda_1^2 and its
label correlation sum_i lambda_i / lambda_1 <u_i, y~>^2, so that the alignment is correlation / sqrt(R).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from threadpoolctl import ThreadpoolController
from torch import Tensor

from ahkernels.centering import Centering, require_centering
from ahkernels.kernel import TangentKernel, require_kernel
from ahkernels.statistics.alignment_numbers import inner_product
from ahkernels.statistics.degenerate import RoundingBound, constant_part, undefined_kernel, undefined_labels
from ahkernels.statistics.degenerate_warning import OneWarning
from ahkernels.statistics.labels import Labels
from ahkernels.statistics.lanczos import largest_eigenpair

Array = NDArray[np.float64]
Product = Callable[[Array], Array]

# Tolerance of the eigenvector that tells whether one is missing; its eigenvalue is known to the square of that.
_MISSING_TOLERANCE = 1e-4
# Kernels of up to so many rows are formed, from products with the identity: cheaper than any iteration, of which that
# for a single eigenvalue is the cheapest.
_DENSE_ROWS, _DENSE_ROWS_FOR_ONE = 512, 128
# From this tolerance on products may have the rounding of fp32.
_FP32_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """The largest eigenvalues of a kernel and their eigenvectors.

    Attributes:
        values: float64 [k], from the largest down.
        vectors: float64 [n*o, k], orthonormal columns.
        residuals: float64 [k], the norms of K u - lambda u.
        products: Number of vectors that the kernel was multiplied with.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int


def eigenpairs(
    kernel: TangentKernel,
    k: int,
    *,
    centering: Centering | None = "global",
    tolerance: float = 1e-10,
    seed: int = 0,
) -> Eigenpairs:
    """The k largest eigenvalues of C K C, or of K without centering, with their eigenvectors and no K in memory.

    They come from the implicitly restarted Lanczos method of ARPACK, and a single one from a Lanczos iteration that
    ends as soon as it may. Products are in float64, or in the kernel's own dtype for a tolerance of 1e-5 and more.

    Args:
        kernel: A tangent kernel.
        k: Number of eigenvalues, from 1 to the number of rows.
        centering: "global", "per_output" (see `cka`) or None for K itself.
        tolerance: Bound on each residual ||K u - lambda u||, relative to the largest eigenvalue.
        seed: Seed of the starting vector.

    Raises:
        ValueError: If k, tolerance or seed is out of range, or for another centering.
        RuntimeError: If the iteration does not reach the tolerance.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x = torch.randn(20, 4)
        >>> kernel = ah.tangent_kernels(model, x)["0"]
        >>> found = ah.eigenpairs(kernel, k=3)
        >>> found.values.shape, found.vectors.shape, bool(found.residuals.max() < 1e-8)
        (torch.Size([3]), torch.Size([60, 3]), True)
    """
    require_kernel("kernel", kernel)
    rows = kernel.shape[0]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= rows:
        raise ValueError(f"k: expected a whole number from 1 to {rows}, the rows of the kernel, got {k!r}")
    if not isinstance(tolerance, (int, float)) or not 0 < tolerance < 1:
        raise ValueError(f"tolerance: expected a number between 0 and 1, got {tolerance!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: expected a whole number of at least 0, got {seed!r}")
    products = 0

    def product(v: Array) -> Array:
        nonlocal products
        products += v.size // rows
        of_columns = kernel.product(torch.from_numpy(v), centering=centering, exact=tolerance < _FP32_TOLERANCE)
        found: Array = of_columns.cpu().numpy().reshape(v.shape)
        return found

    random = np.random.default_rng(seed)
    start = random.standard_normal(rows)
    rounding = 1e-14 * kernel.trace()
    iterates = rows > (_DENSE_ROWS_FOR_ONE if k == 1 else _DENSE_ROWS) and 3 * k <= rows
    # A zero kernel, or a constant one; without centering the trace tells.
    if iterates and (rounding == 0 or centering) and _vanishes(product, start, rounding):
        none = [torch.zeros(k, dtype=torch.float64), torch.eye(rows, k, dtype=torch.float64)]
        return Eigenpairs(none[0], none[1], torch.zeros(k, dtype=torch.float64), products)
    # Rounding adds to the residual that an iteration estimates, and beside copies of an eigenvalue ARPACK may stop too
    # soon by its own estimate: then once more.
    first = tolerance / 2 if k == 1 else tolerance / 10
    for asked in (first, first / 100):
        if iterates:
            # SciPy's BLAS threads and those of the products, which spin for a while, wait for each other: 3 times
            # slower.
            with _blas().limit(limits=1, user_api="blas"):
                values, vectors = _lanczos(product, k, start, asked)
                if k > 1:
                    values, vectors = _with_missing(product, k, values, vectors, random, asked, rounding)
        else:
            dense = product(np.eye(rows))
            values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        order = np.argsort(values)[::-1][:k]
        values, vectors = values[order], vectors[:, order]
        residuals = np.linalg.norm(product(vectors) - vectors * values, axis=0)
        largest = float(np.abs(values).max())
        if residuals.max() <= max(tolerance, 1e-13 * math.sqrt(rows)) * largest + rounding:
            break
        start = vectors.sum(1)
    else:
        raise RuntimeError(
            f"eigenpairs: expected residuals of at most {tolerance:.1e} times the largest eigenvalue, got "
            f"{residuals.max() / largest:.1e}"
        )
    values = values.clip(min=0)  # of a kernel none is below, but for rounding
    found = [torch.from_numpy(np.ascontiguousarray(one)) for one in (values, vectors, residuals)]
    return Eigenpairs(found[0], found[1], found[2], products)


def _vanishes(product: Product, start: Array, rounding: float) -> bool:
    """Whether the operator is zero up to rounding, by its image of a random vector and its image of that image.

    The first image is as small as the root mean square of the eigenvalues, the second compares with the largest one.
    """
    image = product(start)
    if np.linalg.norm(image) > rounding * np.linalg.norm(start):
        return False
    return bool(np.linalg.norm(product(image)) <= rounding * np.linalg.norm(image))


def _lanczos(product: Product, k: int, start: Array, tolerance: float) -> tuple[Array, Array]:
    """The k largest eigenvalues and their vectors, in no order."""
    if k == 1:
        value, vector = largest_eigenpair(product, start, tolerance)
        return np.array([value]), vector[:, None]
    rows = len(start)
    operator = LinearOperator((rows, rows), matvec=product, dtype=np.float64)
    kept = min(rows, max(2 * k + 1, min(2 * k + 10, 20)))
    values, vectors = eigsh(operator, k, which="LA", v0=start, tol=tolerance, ncv=kept)
    return values, vectors


@functools.cache
def _blas() -> ThreadpoolController:
    """The libraries of BLAS, which take a millisecond to find."""
    return ThreadpoolController()


def _with_missing(
    product: Product,
    k: int,
    values: Array,
    vectors: Array,
    random: np.random.Generator,
    tolerance: float,
    rounding: float,
) -> tuple[Array, Array]:
    """The eigenpairs with further copies of repeated eigenvalues, of which Lanczos from one vector may see too few.

    The last layer of a network has every eigenvalue once for each output. Eigenpairs that were found are taken out of
    the operator until nothing is left that is larger than the k-th eigenvalue. Each search starts from a new random
    vector, because earlier ones have no component left in the missing directions.
    """

    def rest(v: Array) -> Array:
        inside: Array = v - vectors @ (vectors.T @ v)
        found = product(inside)
        return found - vectors @ (vectors.T @ found)

    while np.linalg.norm(rest(start := random.standard_normal(len(vectors)))) > rounding * np.linalg.norm(start):
        least = np.sort(values)[-k] + tolerance * float(values.max()) + rounding
        value, vector = _lanczos(rest, 1, start, _MISSING_TOLERANCE)
        if value[0] <= least:
            break
        value, vector = _lanczos(rest, 1, vector[:, 0], tolerance)
        values, vectors = np.concatenate((values, value)), np.concatenate((vectors, vector), 1)
    return values, vectors


def eigenvalues(
    kernel: TangentKernel, k: int, *, centering: Centering | None = "global", tolerance: float = 1e-10
) -> Tensor:
    """The k largest eigenvalues of C K C, or of K without centering: float64 [k] from the largest down.

    Arguments and errors are those of `eigenpairs`.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x = torch.randn(20, 4)
        >>> kernel = ah.tangent_kernels(model, x)["0"]
        >>> ah.eigenvalues(kernel, k=5).shape
        torch.Size([5])
    """
    return eigenpairs(kernel, k, centering=centering, tolerance=tolerance).values


def stable_rank(kernel: TangentKernel, *, centering: Centering | None = "global") -> float:
    """||C K C||_F^2 / lambda_1^2 (appendix G.1), between 1 and the rank of C K C; nan where C K C is zero.

    Args:
        kernel: A tangent kernel.
        centering: "global", "per_output" (see `cka`) or None for K itself.

    Raises:
        ValueError: For another centering.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x = torch.randn(20, 4)
        >>> kernel = ah.tangent_kernels(model, x)["0"]
        >>> 1 <= ah.stable_rank(kernel) <= 60
        True
    """
    require_kernel("kernel", kernel)
    require_centering(centering, none=True)
    norm, largest = kernel.frobenius_norm(centering=centering), largest_eigenvalue(kernel, centering=centering)
    bound = RoundingBound.of(kernel, centering)
    if largest == 0 or (centering and not bound.exceeded_by(norm, constant_part(kernel, centering))):
        return math.nan
    return (norm / largest) ** 2


def label_correlation(kernel: TangentKernel, y: Tensor, *, centering: Centering | None = "global") -> float:
    """sum_i lambda_i / lambda_1 <u_i, y~>^2 for normalised centered labels y~ (appendix G.1), in [0, 1].

    For n x n kernels (`outputs` "trace" and "sum") the matrix C Y Y^T C over its Frobenius norm stands for y~ y~^T. The
    alignment is the label correlation over the square root of the stable rank.

    Args:
        kernel: A tangent kernel.
        y: Class indices [n] or a target matrix [n, o].
        centering: Centering of kernel and labels, "global" or "per_output" (see `cka`). None takes the eigenpairs of K
            itself and centers the labels globally, as for `fisher_kernel` (appendix G.5).

    Returns:
        The correlation; nan, with a `DegenerateKernelWarning`, where labels or kernel are the same in every row.

    Raises:
        ValueError: For labels that do not fit, or another centering; the message names the argument.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 3
        >>> kernel = ah.tangent_kernels(model, x)["0"]
        >>> split = ah.label_correlation(kernel, y) / ah.stable_rank(kernel) ** 0.5
        >>> abs(split - ah.cka(kernel, y)) < 1e-4
        True
    """
    require_kernel("kernel", kernel)
    require_centering(centering, none=True)
    labels = Labels(kernel.outputs, y, kernel.n, centering)
    largest = largest_eigenvalue(kernel, centering=centering)
    constant = constant_part(kernel, centering)
    undefined = undefined_kernel(RoundingBound.of(kernel, centering), largest, constant) or undefined_labels(labels)
    if undefined:
        OneWarning().warn([undefined])
        return math.nan
    return float(inner_product(kernel, labels)) / largest / labels.norm


def largest_eigenvalue(kernel: TangentKernel, *, centering: Centering | None = "global") -> float:
    """The largest eigenvalue lambda_1 of C K C, or of K without centering."""
    return float(eigenvalues(kernel, 1, centering=centering)[0])
