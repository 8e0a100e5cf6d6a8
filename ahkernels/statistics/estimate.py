"""Norm and alignment of a kernel from a few products with it: for when even one pass over its tiles takes too long.

The norm comes from leave-one-out estimates (`ahkernels.statistics.leave_one_out`). <y~, K y~> and the trace are exact:
either costs less than one product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy
import torch
from torch import Tensor

from ahkernels.centering import Centering, require_centering
from ahkernels.distributed.together import together
from ahkernels.kernel import TangentKernel, require_kernel
from ahkernels.ops.moments import KernelMoments
from ahkernels.statistics.alignment_numbers import AlignmentNumbers, inner_product
from ahkernels.statistics.degenerate import RoundingBound, constant_part
from ahkernels.statistics.degenerate_warning import OneWarning
from ahkernels.statistics.labels import Labels
from ahkernels.statistics.leave_one_out import Sketch

DEFAULT_PRODUCTS = 90
# Where a tolerance is given: products at first, their growth until it is reached, and the most of them.
_FIRST_PRODUCTS, _GROWTH, _MOST_PRODUCTS = 30, 1.5, 1000
# Two thirds of the random vectors is what the standard error is worth in intervals: they then hold the exact value as
# often as they say (`benchmarks.estimator`).
_WORTH = 2 / 3


@dataclass(frozen=True)
class Estimate:
    """A number with its error bar.

    Attributes:
        value: The estimate.
        standard_error: The standard deviation of the estimate, as the random vectors show it.
        products: Number of vectors that the kernel was multiplied with.
        samples: Number of independent values that the standard error is worth, so that it has samples - 1 degrees of
            freedom.
    """

    value: float
    standard_error: float
    products: int
    samples: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Bounds between which the exact value lies with this probability (Student's t).

        Raises:
            ValueError: For a confidence that is not between 0 and 1.
        """
        if not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
            raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
        reach = float(scipy.special.stdtrit(self.samples - 1, (1 + confidence) / 2)) * self.standard_error
        return self.value - reach, self.value + reach

    @property
    def relative_error(self) -> float:
        """Standard error over value; 0 for a value of zero."""
        return self.standard_error / self.value if self.value else 0.0

    def __str__(self) -> str:
        """Value and standard error."""
        return f"{self.value:.6g} ± {self.standard_error:.1g}"


@together
def estimate_frobenius_norm(
    kernel: TangentKernel,
    *,
    centering: Centering | None = "global",
    products: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> Estimate:
    """||C K C||_F, or ||K||_F without centering, estimated from products with the kernel.

    The error falls at least as 1/products, and faster the quicker the spectrum decays.
    `TangentKernel.frobenius_norm` is exact.

    Args:
        kernel: A tangent kernel.
        centering: "global", "per_output" (see `cka`) or None for K itself.
        products: Number of vectors to multiply the kernel with, at least 6: 90 unless a tolerance is given, otherwise
            the most of them, 1000. With as many as the kernel has rows the norm is exact.
        tolerance: Relative standard error to reach, between 0 and 1; products are added until it is.
        seed: Seed of the random vectors; the same seed gives the same estimate.

    Returns:
        The estimate. Where `products` do not reach the tolerance, its standard error says so.

    Raises:
        TypeError: For products or a seed that is no whole number, or a tolerance that is no number.
        ValueError: For less than 6 products, another tolerance or centering.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x = torch.randn(20, 4)
        >>> kernel = ah.tangent_kernels(model, x)["0"]
        >>> estimate = ah.estimate_frobenius_norm(kernel, products=30)
        >>> low, high = estimate.interval(0.999)
        >>> low <= estimate.value <= high
        True
        >>> ah.estimate_frobenius_norm(kernel, tolerance=0.05).relative_error <= 0.05
        True
    """
    require_kernel("kernel", kernel)
    require_centering(centering, none=True)
    generator = torch.Generator().manual_seed(_whole("seed", seed))
    samples, rows = kernel.samples, kernel.shape[0]
    most = require_products(products, tolerance)

    def product(v: Tensor) -> Tensor:
        return kernel.product(v, centering=centering, exact=False)

    def random(columns: int) -> Tensor:
        return samples.random(kernel.o, columns, generator).to(kernel.device)

    sketch, wanted = Sketch(product, random, samples), most if tolerance is None else min(_FIRST_PRODUCTS, most)
    while wanted < rows:
        sketch.grow(wanted // 2)
        square = sketch.squared_norm()
        norm = math.sqrt(max(square.value, 0.0))
        error = square.standard_error / (2 * norm) if norm else 0.0
        reached = tolerance is None or not error > tolerance * norm
        if reached or wanted == most:
            return Estimate(norm, error, 2 * sketch.size, max(2, round(_WORTH * sketch.size)))
        wanted = min(int(_GROWTH * wanted), most)
    # As many products as rows give all of the kernel.
    every = samples.identity(kernel.o).to(kernel.device)
    norm = float(samples.norms(kernel.product(every, centering=centering)).norm())
    return Estimate(norm, 0.0, 2 * sketch.size + rows, rows + 1)


@together
def estimate_cka(
    kernel: TangentKernel,
    y: Tensor,
    *,
    centering: Centering = "global",
    products: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> Estimate:
    """Alignment of a kernel with labels, with an estimated norm of the kernel; `cka` is exact.

    Args:
        kernel: A tangent kernel.
        y: Class indices [n] or a target matrix [n, o].
        centering: "global" or "per_output": see `cka`.
        products: See `estimate_frobenius_norm`.
        tolerance: See `estimate_frobenius_norm`.
        seed: See `estimate_frobenius_norm`.

    Returns:
        The estimate; nan, with a `DegenerateKernelWarning`, where the alignment is not defined.

    Raises:
        ValueError: For labels that do not fit, another centering or tolerance, or less than 6 products; the message
            names the argument.
        TypeError: For another type.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 3
        >>> kernel = ah.tangent_kernels(model, x)["0"]
        >>> estimate = ah.estimate_cka(kernel, y, products=60)
        >>> abs(estimate.value - ah.cka(kernel, y)) < 0.1
        True
    """
    require_kernel("kernel", kernel)
    require_centering(centering)
    labels = Labels(kernel.outputs, y, kernel.samples, centering)
    norm = estimate_frobenius_norm(kernel, centering=centering, products=products, tolerance=tolerance, seed=seed)
    bound, moments = RoundingBound.of(kernel, centering), estimated_moments(kernel, labels, norm)
    found = AlignmentNumbers.of(bound, moments, labels, relative_error=norm.relative_error)
    OneWarning().warn([found.undefined])
    return Estimate(found.cka, found.cka_standard_error, norm.products, norm.samples)


def estimated_moments(kernel: TangentKernel, labels: Labels, norm: Estimate) -> KernelMoments:
    """The moments of a kernel with an estimated norm."""
    trace = kernel.samples.sum(kernel.diagonal().sum())
    rest = (inner_product(kernel, labels), trace, constant_part(kernel, labels.centering))
    inner, *others = torch.stack(rest).tolist()
    return KernelMoments(inner, norm.value**2, *others)


def require_products(products: object, tolerance: object = None) -> int:
    """The number of products, or the most of them with a tolerance; None stands for as many as there usually are.

    Raises:
        TypeError: Naming `products` or `tolerance`, for no number.
        ValueError: For less than 6 products, or a tolerance that is not between 0 and 1.
    """
    if tolerance is not None:
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
            raise TypeError(f"tolerance: expected a number between 0 and 1, got {tolerance!r}")
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance: expected a number between 0 and 1, got {tolerance!r}")
    if products is None:
        return DEFAULT_PRODUCTS if tolerance is None else _MOST_PRODUCTS
    number = _whole("products", products)
    if number < 6:
        raise ValueError(f"products: expected at least 6, got {number}")
    return number


def _whole(argument: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument}: expected a whole number, got {value!r}")
    return value
