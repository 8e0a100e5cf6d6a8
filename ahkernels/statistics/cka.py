"""Centered kernel alignment (equations 6 and 7 of the paper)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ahkernels.centering import Centering, center, require_centering
from ahkernels.factors import LayerFactors
from ahkernels.kernel import TangentKernel, moments, require_kernel, statistics
from ahkernels.outputs import OutputSelection


class DegenerateKernelWarning(UserWarning):
    """An alignment is not defined, because a centered kernel is zero; its value is nan."""


class Alignment(NamedTuple):
    """Of one kernel: A(K, K'), ||C K C||_F, the trace of K, and where lambda_1 is known what it splits A into."""

    cka: float
    centered_norm: float
    trace: float
    stable_rank: float = math.nan
    label_correlation: float = math.nan


UNDEFINED = Alignment(math.nan, math.nan, math.nan)


def cka(kernel: TangentKernel, other: Tensor | TangentKernel, *, centering: Centering = "global") -> float:
    """Centered kernel alignment A(K, K') = <C K C, C K' C> / (||C K C||_F ||C K' C||_F), in [0, 1].

    With labels, K' = Y Y^T. For kernels over (sample, output) pairs Y is the vector of all targets (equation 7); for
    n x n kernels (`outputs` "trace" and "sum") its rows are the samples' targets.

    Args:
        kernel: A tangent kernel.
        other: Class indices [n], a target matrix [n, o], or another kernel over as many rows.
        centering: "global": C = I - 11^T/(on), one mean over all samples and outputs (equation 6). "per_output":
            C = (I_n - 11^T/n) (x) I_o, each output over the samples, as in the figures of the paper. For kernels over
            samples alone both are the same.

    Returns:
        The alignment; nan, with a `DegenerateKernelWarning`, where either centered kernel is zero.

    Raises:
        ValueError: where shapes, dtypes or devices do not fit, or labels are out of range; the message names the
            argument.
        TypeError: for another type.
    """
    require_kernel("kernel", kernel)
    require_centering(centering)
    if isinstance(other, TangentKernel):
        return float(alignment_matrix((kernel, other), ("kernel", "other"), centering)[0, 1])
    labels = Labels(kernel.outputs, other, kernel.n, centering)
    (numbers,) = measure([kernel], [labels])[centering]
    return finish(Measured.of(kernel, centering), numbers.tolist(), labels).cka


class Labels:
    """Targets of a kernel's rows, as the kernel K' = Y Y^T.

    Attributes:
        centering: Of the kernel they are compared with; None (for Fisher information) is "global" here.
        rows: Y: float64 [n*o, 1] for kernels over pairs of samples and outputs, [n, columns] for those over samples.
        centered: C Y.
        norm: ||C K' C||_F = ||Y~^T Y~||_F with centered columns Y~; 0 where that is no more than rounding.
    """

    def __init__(self, outputs: OutputSelection, y: Tensor, n: int, centering: Centering | None) -> None:
        labels = outputs.labels(y, n)
        o = 1 if outputs.per_sample else labels.shape[1]
        self.centering: Centering = centering or "global"
        self.rows = labels if o == 1 else labels.reshape(-1, 1)
        self.centered = center(self.rows, o, self.centering)
        norm = float((self.centered.T @ self.centered).norm())
        constant = float((self.rows - self.centered).square().sum())
        self.norm = norm if norm > 64 * torch.finfo(torch.float64).eps * constant else 0.0


def measure(kernels: Sequence[TangentKernel], labels: Sequence[Labels]) -> dict[Centering, Tensor]:
    """<C K C, K'>, ||C K C||_F^2, trace and sum of kernels over the same rows, float64 [q, 4] for each centering.

    The labels are the same, for one centering each. Per output, the sum is that of the blocks of K on the diagonal. All
    numbers come from one op; kernels with the same backward factor share the work on it. Waits for nothing.
    """
    first, rows = kernels[0], labels[0].rows
    centerings = [of_centering.centering for of_centering in labels]
    if first.o > 1:
        targets = center(rows, first.o, "global").view(first.n, first.o)
        found = statistics(kernels, targets, per_output="per_output" in centerings)
        return {one: found[:, 4:] if one == "per_output" else found[:, :4] for one in centerings}
    # A kernel over samples may be nearly constant, so that y~^T K y~ loses digits where centered tiles do not.
    compared = [*kernels, _label_kernel(first, rows)]
    products = moments(compared, "global")
    traces = torch.stack([kernel.diagonal().sum() for kernel in kernels])
    sums = torch.stack([kernel.row_means().sum() * kernel.shape[0] for kernel in kernels])
    numbers = torch.stack((products[:-1, -1], products.diagonal()[:-1], traces, sums), 1)
    return dict.fromkeys(centerings, numbers)


class Measured(NamedTuple):
    """What is to be known of a kernel when its factors are gone.

    Attributes:
        name: For messages.
        rounding: Centered norms up to this, times the sum of the entries of K (per output: of its blocks on the
            diagonal), are no more than rounding.
    """

    name: str
    rounding: float

    @classmethod
    def of(cls, kernel: TangentKernel, centering: Centering | None, argument: str = "kernel") -> Measured:
        """Of a kernel that was passed as `argument`, and is centered so."""
        layer = f" of layer {kernel.name!r}" if kernel.name else ""
        # Blocks that are centered by themselves are computed with their constant part taken out first.
        dtype = torch.float64 if kernel.near_constant(centering) else kernel.dtype
        rows = kernel.n if centering == "per_output" else kernel.shape[0]
        return cls(argument + layer, 64 * torch.finfo(dtype).eps / rows)

    def exceeds_rounding(self, norm: float, total: float) -> bool:
        """Whether a centered norm is finite and more than rounding, for entries of K whose sum is `total`."""
        return norm > self.rounding * abs(total) and math.isfinite(norm)


def inner_product(kernel: TangentKernel, labels: Labels) -> Tensor:
    """<C K C, K'> from products, a float64 scalar on the kernel's device."""
    return kernel.quadratic(labels.centered).sum()


def finish(measured: Measured, numbers: Sequence[float], labels: Labels, largest: float = math.nan) -> Alignment:
    """The alignment from the numbers of `measure`, with a warning where it is not defined.

    Args:
        measured: The kernel.
        numbers: Of `measure`.
        labels: That they were measured with.
        largest: lambda_1 of C K C, for stable rank and label correlation.

    Raises:
        ValueError: where the numbers say that there was nan or inf in a factor.
    """
    inner, square, trace, total = numbers
    if not math.isfinite(trace):
        raise ValueError(f"factors of {measured.name}: expected finite numbers, got nan or inf")
    norm = math.sqrt(max(square, 0.0))  # of a constant kernel, rounding may leave less than nothing
    if not defined(measured, norm, total):
        return Alignment(math.nan, norm, trace)
    largest = largest or math.nan
    rank = (norm / largest) ** 2
    if not labels_defined(labels):
        return Alignment(math.nan, norm, trace, rank)
    return Alignment(inner / norm / labels.norm, norm, trace, rank, inner / largest / labels.norm)


def _require_alike(kernel: TangentKernel, other: TangentKernel) -> None:
    if kernel.n != other.n or kernel.o != other.o:
        raise ValueError(
            f"other: expected a kernel of {kernel.n} samples and {kernel.o} rows for each, got {other.n} and {other.o}"
        )
    dtype, other_dtype = (one.factors[0].forward.dtype for one in (kernel, other))
    if dtype != other_dtype:
        raise ValueError(f"other: expected the dtype of kernel, {dtype}, got {other_dtype}")
    if kernel.device != other.device:
        raise ValueError(f"other: expected the device of kernel, {kernel.device}, got {other.device}")


def alignment_matrix(kernels: Sequence[TangentKernel], arguments: Sequence[str], centering: Centering) -> Tensor:
    """A(K, K') of every two of the kernels, which were passed as `arguments`, float64 [L, L] on the CPU.

    From one pass over tiles of all of them; nan where a centered kernel is zero.
    """
    for kernel in kernels[1:]:
        _require_alike(kernels[0], kernel)
    products = moments(kernels, centering).cpu()
    norms = products.diagonal().sqrt()
    for i, (kernel, argument) in enumerate(zip(kernels, arguments, strict=True)):
        if not defined(Measured.of(kernel, centering, argument), float(norms[i]), constant_part(kernel, centering)):
            norms[i] = math.nan
    return products / norms[:, None] / norms


def constant_part(kernel: TangentKernel, centering: Centering | None) -> float:
    """The sum of entries that `Measured.exceeds_rounding` compares a centered norm with; 0 without centering."""
    if centering is None:
        return 0.0
    return kernel.sum_of_diagonal_blocks() if centering == "per_output" and kernel.o > 1 else kernel.sum()


def _label_kernel(kernel: TangentKernel, labels: Tensor) -> TangentKernel:
    """Y Y^T as a kernel over samples: forward factor Y, unit output gradients."""
    like = kernel.factors[0].forward
    ones = like.new_ones(1).expand(kernel.n, 1, 1, 1)
    return TangentKernel(
        LayerFactors(labels.to(like.device, like.dtype).unsqueeze(1), ones, bias=False, unchecked=True),
        OutputSelection("trace", kernel.outputs.total),
        kernel.precision,
    )


def defined(measured: Measured, norm: float, total: float) -> bool:
    """Whether the centered kernel is more than the rounding of a constant one, with a warning where it is not.

    `norm` is one of its norms, `total` the sum of its entries.
    """
    if measured.exceeds_rounding(norm, total):
        return True
    found = "zero" if total == 0 else "constant" if math.isfinite(norm) else "not finite"
    _warn(f"{measured.name} is {found}")
    return False


def labels_defined(labels: Labels) -> bool:
    """Whether the labels differ between rows, with a warning where they do not."""
    if labels.norm == 0:
        _warn("y is the same in every row of the kernel")
    return labels.norm > 0


def _warn(what: str) -> None:
    warnings.warn(f"{what}, so that its alignment is not defined (nan)", DegenerateKernelWarning, stacklevel=2)
