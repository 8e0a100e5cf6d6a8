"""Centered kernel alignment (equations 6 and 7 of the paper)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ahkernels.factors import Factors
from ahkernels.kernel import TangentKernel, centered_moments, require_kernel, statistics
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


def cka(kernel: TangentKernel, other: Tensor | TangentKernel) -> float:
    """Centered kernel alignment A(K, K') = <C K C, C K' C> / (||C K C||_F ||C K' C||_F), in [0, 1].

    With labels, K' = Y Y^T. For kernels over (sample, output) pairs Y is the vector of all targets (equation 7); for
    n x n kernels (`outputs` "trace" and "sum") its rows are the samples' targets.

    Args:
        kernel: A tangent kernel.
        other: Class indices [n], a target matrix [n, o], or another kernel over as many rows.

    Returns:
        The alignment; nan, with a `DegenerateKernelWarning`, where either centered kernel is zero.

    Raises:
        ValueError: where shapes, dtypes or devices do not fit, or labels are out of range; the message names the
            argument.
        TypeError: for another type.
    """
    require_kernel("kernel", kernel)
    if isinstance(other, TangentKernel):
        return float(alignment_matrix((kernel, other), ("kernel", "other"))[0, 1])
    labels = Labels(kernel.outputs, other, kernel.n)
    return finish(Measured.of(kernel), measure([kernel], labels)[0].tolist(), labels).cka


class Labels:
    """Targets of a kernel's rows, as the kernel K' = Y Y^T.

    Attributes:
        rows: Y: float64 [n*o, 1] for kernels over pairs of samples and outputs, [n, columns] for those over samples.
        norm: ||C K' C||_F = ||Y~^T Y~||_F with centered columns Y~; 0 where that is no more than rounding.
    """

    def __init__(self, outputs: OutputSelection, y: Tensor, n: int) -> None:
        labels = outputs.labels(y, n)
        rows = 1 if outputs.per_sample else labels.shape[1]
        self.rows = labels if rows == 1 else labels.reshape(-1, 1)
        centered = self.rows - self.rows.mean(0)
        norm = float((centered.T @ centered).norm())
        constant = float((self.rows.sum(0) ** 2).sum()) / len(self.rows)
        self.norm = norm if norm > 64 * torch.finfo(torch.float64).eps * constant else 0.0


def measure(kernels: Sequence[TangentKernel], labels: Labels) -> Tensor:
    """<C K C, K'>, ||C K C||_F^2, trace and sum of kernels over the same rows, float64 [q, 4] on their device.

    In one op; kernels with the same backward factor share the work on it. Waits for nothing.
    """
    first = kernels[0]
    if first.o > 1:
        centered = labels.rows - labels.rows.mean()
        return statistics(kernels, centered.view(first.n, first.o))
    # A kernel over samples may be nearly constant, so that y~^T K y~ loses digits where centered tiles do not.
    compared = [*kernels, _label_kernel(first, labels.rows)]
    moments = centered_moments(compared, [kernel.row_means() for kernel in compared])
    traces = torch.stack([kernel.diagonal().sum() for kernel in kernels])
    sums = torch.stack([kernel.row_means().sum() * kernel.shape[0] for kernel in kernels])
    return torch.stack((moments[:-1, -1], moments.diagonal()[:-1], traces, sums), 1)


class Measured(NamedTuple):
    """What is to be known of a kernel when its factors are gone.

    Attributes:
        name: For messages.
        rounding: Centered norms up to this, times the sum of the entries of K, are no more than rounding.
    """

    name: str
    rounding: float

    @classmethod
    def of(cls, kernel: TangentKernel, argument: str = "kernel") -> Measured:
        """Of a kernel that was passed as `argument`."""
        layer = f" of layer {kernel.name!r}" if kernel.name else ""
        # Kernels over samples alone are computed with their constant part taken out first.
        dtype = torch.float64 if kernel.o == 1 else kernel.dtype
        return cls(argument + layer, 64 * torch.finfo(dtype).eps / kernel.shape[0])

    def exceeds_rounding(self, norm: float, total: float) -> bool:
        """Whether a centered norm is finite and more than rounding, for entries of K whose sum is `total`."""
        return norm > self.rounding * abs(total) and math.isfinite(norm)


def inner_product(kernel: TangentKernel, labels: Labels) -> Tensor:
    """<C K C, K'> from products, a float64 scalar on the kernel's device."""
    return kernel.quadratic(labels.rows - labels.rows.mean(0)).sum()


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
    norm = math.sqrt(square)
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
    dtype, other_dtype = (one.terms[0].forward.dtype for one in (kernel, other))
    if dtype != other_dtype:
        raise ValueError(f"other: expected the dtype of kernel, {dtype}, got {other_dtype}")
    if kernel.device != other.device:
        raise ValueError(f"other: expected the device of kernel, {kernel.device}, got {other.device}")


def alignment_matrix(kernels: Sequence[TangentKernel], arguments: Sequence[str]) -> Tensor:
    """A(K, K') of every two of the kernels, which were passed as `arguments`, float64 [L, L] on the CPU.

    From one pass over tiles of all of them; nan where a centered kernel is zero.
    """
    for kernel in kernels[1:]:
        _require_alike(kernels[0], kernel)
    moments = centered_moments(kernels, [kernel.row_means() for kernel in kernels]).cpu()
    norms = moments.diagonal().sqrt()
    for i, (kernel, argument) in enumerate(zip(kernels, arguments, strict=True)):
        if not defined(Measured.of(kernel, argument), float(norms[i]), kernel.sum()):
            norms[i] = math.nan
    return moments / norms[:, None] / norms


def _label_kernel(kernel: TangentKernel, labels: Tensor) -> TangentKernel:
    """Y Y^T as a kernel over samples: forward factor Y, unit output gradients."""
    like = kernel.terms[0].forward
    ones = like.new_ones(1).expand(kernel.n, 1, 1, 1)
    return TangentKernel(
        Factors(labels.to(like.device, like.dtype).unsqueeze(1), ones, bias=False, unchecked=True),
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
