"""Norm and alignment of a kernel from a few products with it: for when even one pass over its tiles takes too long.

With an orthonormal basis Q of what A = C K C makes of random vectors, which holds most of its largest eigenvectors, and
R = I - Q Q^T,

    ||A||_F^2 = 2 ||A Q||_F^2 - ||Q^T A Q||_F^2 + ||R A R||_F^2.

Only the last term is estimated, as the mean of ||R A R g||^2 over random g (Hutch++: Meyer, Musco, Musco and Woodruff,
2021). It is unbiased, and the spread of the single values gives its standard error. <y~, K y~> and the trace are exact:
either costs less than one product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import t
from torch import Tensor

from ahkernels.centering import Centering, require_centering
from ahkernels.kernel import TangentKernel, require_kernel
from ahkernels.ops.moments import KernelMoments
from ahkernels.statistics.alignment_numbers import AlignmentNumbers, inner_product
from ahkernels.statistics.degenerate import RoundingBound, constant_part
from ahkernels.statistics.degenerate_warning import OneWarning
from ahkernels.statistics.labels import Labels

DEFAULT_PRODUCTS = 90


@dataclass(frozen=True)
class Estimate:
    """A number with its error bar.

    Attributes:
        value: The estimate.
        standard_error: The standard deviation of the estimate, as the random vectors show it.
        products: Number of vectors that the kernel was multiplied with.
        samples: Number of independent values that the standard error comes from, which has samples - 1 degrees of
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
        reach = float(t.ppf((1 + confidence) / 2, self.samples - 1)) * self.standard_error
        return self.value - reach, self.value + reach

    @property
    def relative_error(self) -> float:
        """Standard error over value; 0 for a value of zero."""
        return self.standard_error / self.value if self.value else 0.0

    def __str__(self) -> str:
        """Value and standard error."""
        return f"{self.value:.6g} ± {self.standard_error:.1g}"


def estimate_frobenius_norm(
    kernel: TangentKernel,
    *,
    centering: Centering | None = "global",
    products: int = DEFAULT_PRODUCTS,
    seed: int = 0,
) -> Estimate:
    """||C K C||_F, or ||K||_F without centering, estimated from products with the kernel.

    The error falls at least as 1/products, and faster the quicker the spectrum decays.
    `TangentKernel.frobenius_norm` is exact.

    Args:
        kernel: A tangent kernel.
        centering: "global", "per_output" (see `cka`) or None for K itself.
        products: Number of vectors to multiply the kernel with, at least 6. A third of them find a basis, a third its
            image, and a third the error bar.
        seed: Seed of the random vectors; the same seed gives the same estimate.

    Raises:
        TypeError: For products or a seed that is no whole number.
        ValueError: For less than 6 products, or another centering.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x = torch.randn(20, 4)
        >>> kernel = ah.tangent_kernels(model, x)["0"]
        >>> estimate = ah.estimate_frobenius_norm(kernel, products=30)
        >>> low, high = estimate.interval(0.999)
        >>> low <= estimate.value <= high
        True
    """
    require_kernel("kernel", kernel)
    require_centering(centering, none=True)
    generator = torch.Generator().manual_seed(_whole("seed", seed))
    rows = kernel.shape[0]
    size = min(require_products(products) // 3, max(rows, 2))  # more would see nothing else

    def product(v: Tensor) -> Tensor:
        return kernel.product(v, centering=centering, exact=False)

    random = torch.randn(rows, 2 * size, generator=generator, dtype=torch.float64).to(kernel.device)
    image, tested = torch.split(product(random), size, 1)
    g = random[:, size:]
    largest = float(image.abs().max())
    if largest == 0 or not math.isfinite(largest):
        return Estimate(largest, 0.0, 2 * size, size)
    basis, _ = torch.linalg.qr(image / largest)
    image = product(basis)
    inside = basis.T @ image
    rest = tested - image @ (basis.T @ g)
    rest -= basis @ (basis.T @ rest)
    values = rest.square().sum(0)
    square = float(2 * image.square().sum() - inside.square().sum() + values.mean())
    norm = math.sqrt(square)
    return Estimate(norm, float(values.std()) / math.sqrt(size) / (2 * norm), 2 * size + basis.shape[1], size)


def estimate_cka(
    kernel: TangentKernel,
    y: Tensor,
    *,
    centering: Centering = "global",
    products: int = DEFAULT_PRODUCTS,
    seed: int = 0,
) -> Estimate:
    """Alignment of a kernel with labels, with an estimated norm of the kernel; `cka` is exact.

    Args:
        kernel: A tangent kernel.
        y: Class indices [n] or a target matrix [n, o].
        centering: "global" or "per_output": see `cka`.
        products: See `estimate_frobenius_norm`.
        seed: See `estimate_frobenius_norm`.

    Returns:
        The estimate; nan, with a `DegenerateKernelWarning`, where the alignment is not defined.

    Raises:
        ValueError: For labels that do not fit, another centering or less than 6 products; the message names the
            argument.
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
    labels = Labels(kernel.outputs, y, kernel.n, centering)
    norm = estimate_frobenius_norm(kernel, centering=centering, products=products, seed=seed)
    bound, moments = RoundingBound.of(kernel, centering), estimated_moments(kernel, labels, norm)
    found = AlignmentNumbers.of(bound, moments, labels, relative_error=norm.relative_error)
    OneWarning().warn([found.undefined])
    return Estimate(found.cka, found.cka_standard_error, norm.products, norm.samples)


def estimated_moments(kernel: TangentKernel, labels: Labels, norm: Estimate) -> KernelMoments:
    """The moments of a kernel with an estimated norm."""
    inner = float(inner_product(kernel, labels))
    return KernelMoments(inner, norm.value**2, kernel.trace(), constant_part(kernel, labels.centering))


def require_products(products: object) -> int:
    """The number of products; raises TypeError or ValueError naming `products` for less than 6 or no number."""
    number = _whole("products", products)
    if number < 6:
        raise ValueError(f"products: expected at least 6, got {number}")
    return number


def _whole(argument: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument}: expected a whole number, got {value!r}")
    return value
