"""The spectrum of a tangent kernel from products with it, and the parts that it splits the alignment into (appendix G).

With the eigenvalues lambda_1 >= lambda_2 >= ... of C K C, its stable rank is R = sum lambda_i^2 / lambda_1^2 and its
label correlation sum_i lambda_i / lambda_1 <u_i, y~>^2, so that the alignment is correlation / sqrt(R).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ahkernels.centering import Centering, require_centering
from ahkernels.contraction.order import LayerShape, flops, product_cost
from ahkernels.distributed.together import together
from ahkernels.kernel import TangentKernel, require_kernel
from ahkernels.kernel_operator import Product
from ahkernels.samples import Samples
from ahkernels.statistics.alignment_numbers import inner_product
from ahkernels.statistics.degenerate import RoundingBound, constant_part, undefined_kernel, undefined_labels
from ahkernels.statistics.degenerate_warning import OneWarning
from ahkernels.statistics.labels import Labels
from ahkernels.statistics.lanczos import largest_eigenpairs

# Vectors that are multiplied at a time: one for each so many eigenvalues, and no more than so many. With more of them
# more products are needed; with fewer it takes longer to keep a large basis orthogonal.
_EIGENVALUES_PER_VECTOR, _MOST_IN_BLOCK = 50, 8
# Tolerance of the eigenvector that tells whether one is missing; its eigenvalue is known to the square of that.
_MISSING_TOLERANCE = 1e-4
# Kernels of up to so many rows are formed: cheaper than any iteration, of which that for a single eigenvalue is the
# cheapest.
_DENSE_ROWS, _DENSE_ROWS_FOR_ONE = 512, 128
# Of up to so many rows (32 MiB), where a processor forms and decomposes them sooner than it multiplies by them.
_MOST_DENSE_ROWS = 2048
# A decomposition takes as long as so many flops of products for each row cubed; and an iteration needs about so many
# products for each eigenpair, and so many to begin with.
_DECOMPOSITION, _PRODUCTS_PER_PAIR, _FIRST_PRODUCTS = 9, 4, 60
# From this tolerance on products may have the rounding of fp32.
_FP32_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """The largest eigenvalues of a kernel and their eigenvectors, on the kernel's device.

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


@together
def eigenpairs(
    kernel: TangentKernel,
    k: int,
    *,
    centering: Centering | None = "global",
    tolerance: float = 1e-10,
    seed: int = 0,
) -> Eigenpairs:
    """The k largest eigenvalues of C K C, or of K without centering, with their eigenvectors and no K in memory.

    They come from a block Lanczos iteration on the kernel's device. Small kernels are formed, and on a processor those
    of up to 2,048 rows (32 MiB) where that is expected to take less time. Products are in float64, or in the kernel's
    own dtype for a tolerance of 1e-5 and more.

    Args:
        kernel: A tangent kernel.
        k: Number of eigenvalues, from 1 to the number of rows.
        centering: "global", "per_output" (see `cka`) or None for K itself.
        tolerance: Bound on each residual ||K u - lambda u||, relative to the largest eigenvalue.
        seed: Seed of the starting vectors.

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
    require_centering(centering, none=True)
    samples, rows = kernel.samples, kernel.shape[0]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= rows:
        raise ValueError(f"k: expected a whole number from 1 to {rows}, the rows of the kernel, got {k!r}")
    if not isinstance(tolerance, (int, float)) or not 0 < tolerance < 1:
        raise ValueError(f"tolerance: expected a number between 0 and 1, got {tolerance!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: expected a whole number of at least 0, got {seed!r}")
    products = 0

    def product(v: Tensor) -> Tensor:
        nonlocal products
        products += v.shape[1]
        return kernel.product(v, centering=centering, exact=tolerance < _FP32_TOLERANCE)

    generator = torch.Generator().manual_seed(seed)
    width = max(1, min(k // _EIGENVALUES_PER_VECTOR, _MOST_IN_BLOCK))

    def random(columns: int) -> Tensor:
        return samples.random(kernel.o, columns, generator).to(kernel.device)

    start = random(width)
    rounding = 1e-14 * kernel.trace()
    iterates = not _cheaper_formed(kernel, k)
    # A zero kernel, or a constant one; without centering the trace tells.
    if iterates and (rounding == 0 or centering) and _vanishes(product, start[:, :1], rounding, samples):
        zeros, vectors = start.new_zeros(k), samples.identity(kernel.o)[:, :k].to(start)
        return Eigenpairs(zeros, vectors, zeros.clone(), products)
    # Rounding adds to the residual that an iteration estimates: then once more.
    first = tolerance / 2
    for asked in (first, first / 100):
        if iterates:
            values, vectors = largest_eigenpairs(product, start, k, asked, samples, kernel.o, rounding)
            if k > 1:
                found = values, vectors
                values, vectors = _with_missing(product, k, *found, random, asked, rounding, samples, kernel.o)
            values, order = values.sort(descending=True)
            values, vectors = values[:k], vectors[:, order[:k]]
            images = product(vectors)
        else:
            values, vectors, images = _of_formed(kernel, k, centering)
        residuals = samples.norms(images - vectors * values)
        largest = float(values.abs().max())
        if float(residuals.max()) <= max(tolerance, 1e-13 * math.sqrt(rows)) * largest + rounding:
            break
        start = vectors @ torch.randn(k, width, generator=generator, dtype=torch.float64).to(vectors)
    else:
        raise RuntimeError(
            f"eigenpairs: expected residuals of at most {tolerance:.1e} times the largest eigenvalue, got "
            f"{float(residuals.max()) / largest:.1e}"
        )
    values = values.clamp(min=0)  # of a kernel none is below, but for rounding
    return Eigenpairs(values, vectors.contiguous(), residuals, products)


def _cheaper_formed(kernel: TangentKernel, k: int) -> bool:
    """Whether K is formed for its k largest eigenpairs."""
    samples, o, rows = kernel.samples, kernel.o, kernel.shape[0]
    if rows <= (_DENSE_ROWS_FOR_ONE if k == 1 else _DENSE_ROWS) or 3 * k > rows:
        return True
    if rows > _MOST_DENSE_ROWS or samples.sharded or kernel.device.type != "cpu":
        return False
    layers = [LayerShape.of(layer) for layer in kernel.batch.kernels()[0]]
    forming = flops(samples.n, o, layers)["tiles"] + _DECOMPOSITION * rows**3
    return forming < (_PRODUCTS_PER_PAIR * k + _FIRST_PRODUCTS) * product_cost(samples.n, o, layers)


def _of_formed(kernel: TangentKernel, k: int, centering: Centering | None) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest eigenvalues of C K C, in memory, and their vectors and images at the samples here."""
    samples, o = kernel.samples, kernel.o
    if samples.sharded:
        formed = samples.gather(kernel.product(samples.identity(o), centering=centering))
    else:
        formed = kernel.to_dense(out=torch.empty(kernel.shape, dtype=torch.float64, device=kernel.device))
        formed = samples.center(samples.center(formed, o, centering).T, o, centering)
    values, vectors = torch.linalg.eigh(formed)
    values, vectors = values[-k:].flip(0), vectors[:, -k:].flip(1)
    here = slice(samples.held.start * o, samples.held.stop * o)
    return values, vectors[here], formed[here] @ vectors


def _vanishes(product: Product, start: Tensor, rounding: float, samples: Samples) -> bool:
    """Whether the operator is zero up to rounding, by its image of a random vector and its image of that image.

    The first image is as small as the root mean square of the eigenvalues, the second compares with the largest one.
    """
    image = product(start)
    of_start, of_image = samples.norms(start), samples.norms(image)
    if bool(of_image > rounding * of_start):
        return False
    return bool(samples.norms(product(image)) <= rounding * of_image)


def _with_missing(
    product: Product,
    k: int,
    values: Tensor,
    vectors: Tensor,
    random: Callable[[int], Tensor],
    tolerance: float,
    rounding: float,
    samples: Samples,
    o: int,
) -> tuple[Tensor, Tensor]:
    """The eigenpairs with further copies of repeated eigenvalues, of which an iteration may see too few.

    The last layer of a network has every eigenvalue once for each output. Eigenpairs that were found are taken out of
    the operator until nothing is left that is larger than the k-th eigenvalue. Each search starts from new random
    vectors, because earlier ones have no component left in the missing directions. Where a copy is missing there may be
    many, so that each search takes twice as many pairs as the one before.
    """

    def rest(v: Tensor) -> Tensor:
        inside = v - vectors @ samples.inner(vectors, v)
        found = product(inside)
        return found - vectors @ samples.inner(vectors, found)

    more = 1
    while True:
        start = random(1)
        if bool(samples.norms(rest(start)) <= rounding * samples.norms(start)):
            return values, vectors
        least = values.sort(descending=True).values[k - 1] + tolerance * values.max() + rounding
        value, vector = largest_eigenpairs(rest, start, 1, _MISSING_TOLERANCE, samples, o, rounding)
        if bool(value[0] <= least):
            return values, vectors
        start = torch.cat((vector, random(more - 1)), 1)
        # What is left may be far smaller than the largest eigenvalue, which the tolerance is relative to: parts of the
        # eigenvectors that were taken out come back with it.
        enough = tolerance * float(values.max()) + rounding
        of_more, found = largest_eigenpairs(rest, start, more, tolerance, samples, o, enough)
        of_more, found = of_more[of_more > least], found[:, of_more > least]
        if len(of_more) == 0:
            return values, vectors
        found, _ = samples.orthonormal(found - vectors @ samples.inner(vectors, found))
        values, vectors = torch.cat((values, of_more)), torch.cat((vectors, found), 1)
        more = min(2 * more, k)


@together
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


@together
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
    if largest == 0 or (centering and not bound.exceeded_by(norm, float(constant_part(kernel, centering)))):
        return math.nan
    return (norm / largest) ** 2


@together
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
    labels = Labels(kernel.outputs, y, kernel.samples, centering)
    largest = largest_eigenvalue(kernel, centering=centering)
    constant = float(constant_part(kernel, centering))
    undefined = undefined_kernel(RoundingBound.of(kernel, centering), largest, constant) or undefined_labels(labels)
    if undefined:
        OneWarning().warn([undefined])
        return math.nan
    return float(inner_product(kernel, labels)) / largest / labels.norm


def largest_eigenvalue(kernel: TangentKernel, *, centering: Centering | None = "global") -> float:
    """The largest eigenvalue lambda_1 of C K C, or of K without centering."""
    return float(eigenvalues(kernel, 1, centering=centering)[0])
