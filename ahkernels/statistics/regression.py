"""Kernel ridge regression with a tangent kernel, from products with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ahkernels.cross_kernel import CrossKernel
from ahkernels.distributed.together import together
from ahkernels.kernel import TangentKernel, require_kernel
from ahkernels.samples import Samples

MAX_ITERATIONS = 1000


@dataclass(frozen=True, eq=False)
class KernelRegression:
    """The minimiser of ||Y - K alpha||^2 + ridge <alpha, K alpha>, that is alpha = (K + ridge I)^-1 Y.

    Attributes:
        kernel: K, over the training samples.
        coefficients: alpha, float64 [n, r] on the kernel's device, for the r outputs that are taken, or for n x n
            kernels (`outputs` "trace" and "sum") for all o outputs.
        ridge: The ridge as it was given.
        residual: The greatest ||Y - (K + ridge I) alpha|| / ||Y|| over the columns.
        products: Number of vectors that K was multiplied with.
    """

    kernel: TangentKernel
    coefficients: Tensor
    ridge: float
    residual: float
    products: int

    def predict(self, kernel: TangentKernel) -> Tensor:
        """Predictions K(x', x) alpha for the samples of another kernel of the same layers, float64 [n', r].

        Args:
            kernel: A kernel that was captured from the same parameters as the one that was fitted; see `CrossKernel`.

        Raises:
            TypeError: For anything but a kernel.
            ValueError: For a kernel of other layers, or in another form.
        """
        require_kernel("kernel", kernel)
        try:
            cross = CrossKernel(kernel, self.kernel)
        except ValueError as error:
            raise ValueError(f"kernel: expected one of the layers that were fitted; {error}") from error
        rows = self.kernel.rows_here
        columns = self.coefficients.shape[1] // self.kernel.o
        found = cross @ self.coefficients.reshape(rows, columns)
        return found.reshape(kernel.n, kernel.o * columns)


@together
def kernel_regression(
    kernel: TangentKernel,
    y: Tensor,
    *,
    ridge: float,
    tolerance: float = 1e-6,
    rank: int = 100,
    max_iterations: int = MAX_ITERATIONS,
    seed: int = 0,
) -> KernelRegression:
    """Solves (K + ridge I) alpha = Y without K in memory.

    Conjugate gradients in float64 solve for all columns of Y at once, preconditioned with a randomised Nyström
    approximation of K (Frangella, Tropp and Udell, 2021). The kernel of a network around its initial function f_0
    predicts f - f_0: give y - f_0(x) as targets, and add f_0(x') to the predictions.

    Args:
        kernel: A tangent kernel.
        y: Class indices [n] (as one-hot rows) or a target matrix [n, o].
        ridge: A positive number in the units of K, whose eigenvalues have the mean K.trace() / K.shape[0].
        tolerance: Bound on the residual of each column, relative to its norm.
        rank: Rank of the preconditioner, which takes so many products before the first iteration; 0 for none.
        max_iterations: Most iterations of conjugate gradients; each multiplies K with all columns.
        seed: Seed of the preconditioner.

    Raises:
        ValueError: If labels do not fit or a number is out of range; the message names the argument.
        TypeError: For another type.
        RuntimeError: If the iterations do not reach the tolerance.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 3
        >>> kernel = ah.tangent_kernels(model, x)["0"]
        >>> fit = ah.kernel_regression(kernel, y, ridge=1e-3 * kernel.trace() / 60)
        >>> fit.predict(ah.tangent_kernels(model, x[:5])["0"]).shape
        torch.Size([5, 3])
    """
    require_kernel("kernel", kernel)
    for argument, value, expected, fits in (
        ("ridge", ridge, "a finite positive number", lambda number: 0 < number < math.inf),
        ("tolerance", tolerance, "a number between 0 and 1", lambda number: 0 < number < 1),
        ("rank", rank, "a whole number of at least 0", lambda number: isinstance(number, int) and number >= 0),
        ("seed", seed, "a whole number of at least 0", lambda number: isinstance(number, int) and number >= 0),
        (
            "max_iterations",
            max_iterations,
            "a positive whole number",
            lambda number: isinstance(number, int) and number > 0,
        ),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits(value):
            raise ValueError(f"{argument}: expected {expected}, got {value!r}")
    samples = kernel.samples
    targets = samples.everywhere(lambda: kernel.outputs.labels(y, kernel.n)).to(kernel.device)
    right = targets if kernel.outputs.per_sample else targets.reshape(-1, 1)  # [rows, columns]
    products = 0

    def product(v: Tensor) -> Tensor:
        nonlocal products
        products += v.shape[1]
        return kernel.product(v)

    precondition = _nystrom(product, kernel, min(rank, kernel.shape[0]), ridge, seed)
    alpha, residual = _conjugate_gradients(
        lambda v: product(v) + ridge * v, right, precondition, tolerance, max_iterations, samples
    )
    if not residual <= tolerance:
        raise RuntimeError(
            f"kernel_regression: expected a residual of at most {tolerance:.1e} after max_iterations = "
            f"{max_iterations}, got {residual:.1e}; a larger ridge or rank takes fewer iterations"
        )
    return KernelRegression(kernel, alpha.reshape(targets.shape), float(ridge), residual, products)


def _nystrom(
    product: Callable[[Tensor], Tensor], kernel: TangentKernel, rank: int, ridge: float, seed: int
) -> Callable[[Tensor], Tensor]:
    """The map r -> P^-1 r with P = U (L + ridge) U^T / (l_min + ridge) + (I - U U^T) for K ~ U L U^T of this rank."""
    if rank == 0:
        return lambda r: r
    generator = torch.Generator().manual_seed(seed)
    samples = kernel.samples
    basis, _ = samples.orthonormal(samples.random(kernel.o, rank, generator).to(kernel.device))
    image = product(basis)
    shift = torch.finfo(torch.float64).eps * math.sqrt(kernel.shape[0]) * float(samples.norms(image).norm())
    if shift == 0:  # a zero kernel
        return lambda r: r
    image += shift * basis  # makes the root of the small matrix exist
    inside = samples.inner(basis, image)
    root = torch.linalg.cholesky((inside + inside.T) / 2)
    # U S V^T from the triangle of a QR decomposition, which has the same singular values.
    q, triangle = samples.orthonormal(torch.linalg.solve_triangular(root, image.T, upper=False).T)
    vectors, singular, _ = torch.linalg.svd(triangle)
    vectors = q @ vectors
    values = (singular.square() - shift).clamp(min=0)
    shrink = (values[-1] + ridge) / (values + ridge) - 1
    return lambda r: r + vectors @ (shrink[:, None] * samples.inner(vectors, r))


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    max_iterations: int,
    samples: Samples,
) -> tuple[Tensor, float]:
    """The solution for each column and the greatest relative residual; columns that have converged are left alone."""
    size = samples.norms(right)
    solution, residual = torch.zeros_like(right), right.clone()
    direction = precondition(residual).clone()
    inner = samples.sum((residual * direction).sum(0))
    for _ in range(max_iterations):
        active = samples.norms(residual) > tolerance / 2 * size  # the recursion loses some of it
        if not bool(active.any()):
            break
        p = direction[:, active]
        image = product(p)
        step = inner[active] / samples.sum((p * image).sum(0))
        solution[:, active] += step * p
        residual[:, active] -= step * image
        z = precondition(residual[:, active])
        following = samples.sum((residual[:, active] * z).sum(0))
        direction[:, active] = z + following / inner[active] * p
        inner[active] = following
    found = samples.norms(right - product(solution))
    return solution, float((found / size.where(size > 0, 1.0)).max())
