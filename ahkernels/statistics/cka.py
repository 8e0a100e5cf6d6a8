"""Centered kernel alignment (equations 6 and 7 of the paper)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ahkernels.factors import Factors
from ahkernels.kernel import TangentKernel, centered_moments, statistics
from ahkernels.outputs import OutputSelection


class DegenerateKernelWarning(UserWarning):
    """An alignment is not defined, because a centered kernel is zero; its value is nan."""


class Alignment(NamedTuple):
    """Of one kernel: A(K, K'), ||C K C||_F and the trace of K."""

    cka: float
    centered_norm: float
    trace: float


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
    if isinstance(other, TangentKernel):
        _require_alike(kernel, other)
        return _alignment([kernel, other], _moments([kernel, other]), 0, 1, "other")
    return label_alignment([kernel], kernel.outputs.labels(other, kernel.n))[0].cka


def label_alignment(kernels: Sequence[TangentKernel], labels: Tensor) -> list[Alignment]:
    """A(K, Y Y^T) with ||C K C||_F and trace of kernels over the same rows, in one pass over their tiles.

    Kernels with the same backward factor share the work on it. The labels are `OutputSelection.labels` of the kernels.
    """
    if kernels[0].o == 1:
        # A kernel over samples may be nearly constant, so that y~^T K y~ loses digits where centered tiles do not.
        compared = [*kernels, _label_kernel(kernels[0], labels)]
        moments = _moments(compared)
        return [
            Alignment(_alignment(compared, moments, i, len(kernels), "y"), math.sqrt(moments[i, i]), kernel.trace())
            for i, kernel in enumerate(kernels)
        ]
    centered = labels - labels.mean()
    label_norm = float((centered**2).sum())
    result = []
    for kernel, numbers in zip(kernels, statistics(kernels, centered).tolist(), strict=True):
        form, square, trace, total = numbers  # form = <y~, K y~>
        norm = math.sqrt(square)
        defined = _defined(kernel, norm, total / kernel.shape[0], "kernel") and _labels_vary(labels, label_norm)
        result.append(Alignment(form / norm / label_norm if defined else math.nan, norm, trace))
    return result


def _require_alike(kernel: TangentKernel, other: TangentKernel) -> None:
    if kernel.n != other.n or kernel.o != other.o:
        raise ValueError(
            f"other: expected a kernel of {kernel.n} samples and {kernel.o} rows for each, got {other.n} and {other.o}"
        )
    if kernel.factors.forward.dtype != other.factors.forward.dtype:
        raise ValueError(
            f"other: expected the dtype of kernel, {kernel.factors.forward.dtype}, got {other.factors.forward.dtype}"
        )
    if kernel.device != other.device:
        raise ValueError(f"other: expected the device of kernel, {kernel.device}, got {other.device}")


def _moments(kernels: Sequence[TangentKernel]) -> Tensor:
    return centered_moments(kernels, [kernel.row_means() for kernel in kernels])


def _alignment(kernels: Sequence[TangentKernel], moments: Tensor, i: int, j: int, other: str) -> float:
    norms = []
    for index, argument in ((i, "kernel"), (j, other)):
        norms.append(math.sqrt(moments[index, index]))
        total = float(kernels[index].row_means().sum())
        if not _defined(kernels[index], norms[-1], total, argument):
            return math.nan
    return float(moments[i, j]) / norms[0] / norms[1]


def _label_kernel(kernel: TangentKernel, labels: Tensor) -> TangentKernel:
    """Y Y^T as a kernel over samples: forward factor Y, unit output gradients."""
    like = kernel.factors.forward
    ones = like.new_ones(1).expand(kernel.n, 1, 1, 1)
    return TangentKernel(
        Factors(labels.to(like.device, like.dtype).unsqueeze(1), ones, bias=False),
        OutputSelection("trace", kernel.outputs.total),
        kernel.precision,
    )


def _defined(kernel: TangentKernel, norm: float, total: float, argument: str) -> bool:
    """Whether the centered kernel is more than the rounding of a constant one.

    `total` is the sum of its row means, so that its magnitude is the Frobenius norm of the constant part.
    """
    constant = abs(total)
    # Kernels over samples alone are computed with their constant part taken out first.
    dtype = torch.float64 if kernel.o == 1 else kernel.dtype
    if norm > 64 * torch.finfo(dtype).eps * constant and math.isfinite(norm):
        return True
    layer = f" of layer {kernel.factors.layer!r}" if kernel.factors.layer else ""
    what = "zero" if constant == 0 else "constant" if math.isfinite(norm) else "not finite"
    warnings.warn(
        f"{argument}{layer} is {what}, so that its alignment is not defined (nan)",
        DegenerateKernelWarning,
        stacklevel=2,
    )
    return False


def _labels_vary(labels: Tensor, norm: float) -> bool:
    if norm > 0:
        return True
    warnings.warn(
        f"y is the same ({float(labels.flatten()[0]):g}) in every row of the kernel, so that alignment with it is "
        "not defined (nan)",
        DegenerateKernelWarning,
        stacklevel=2,
    )
    return False
