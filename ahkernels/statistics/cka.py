"""Centered kernel alignment (equations 6 and 7 of the paper)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ahkernels.factors import Factors
from ahkernels.kernel import TangentKernel, centered_moments
from ahkernels.outputs import OutputSelection


class DegenerateKernelWarning(UserWarning):
    """An alignment is not defined, because a centered kernel is zero; its value is nan."""


class Alignment(NamedTuple):
    """Of one kernel: A(K, K') and ||C K C||_F."""

    cka: float
    centered_norm: float


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
        return _kernel_alignment(kernel, other).cka
    return label_alignment([kernel], other)[0].cka


def label_alignment(kernels: Sequence[TangentKernel], y: Tensor) -> list[Alignment]:
    """A(K, Y Y^T) with ||C K C||_F of kernels over the same rows, in one pass over their tiles.

    Kernels with the same backward factor share the work on it.
    """
    first = kernels[0]
    labels = first.outputs.labels(y, first.n)
    if first.o == 1:
        # A kernel over samples may be nearly constant, so that y~^T K y~ loses digits where centered tiles do not.
        kernels = [*kernels, _label_kernel(first, labels)]
        moments = _moments(kernels)
        return [_alignment(kernels, moments, i, len(kernels) - 1, "y") for i in range(len(kernels) - 1)]
    centered = labels - labels.mean()
    label_norm = float((centered**2).sum())
    inner = [float(kernel.quadratic(centered.unsqueeze(2))) for kernel in kernels]  # <y~, K y~>
    result = []
    for kernel, numerator, square in zip(kernels, inner, _moments(kernels).diagonal().tolist(), strict=True):
        norm = math.sqrt(square)
        defined = _defined(kernel, norm, "kernel") and _labels_vary(labels, label_norm)
        result.append(Alignment(numerator / norm / label_norm if defined else math.nan, norm))
    return result


def _kernel_alignment(kernel: TangentKernel, other: TangentKernel) -> Alignment:
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
    return _alignment([kernel, other], _moments([kernel, other]), 0, 1, "other")


def _moments(kernels: Sequence[TangentKernel]) -> Tensor:
    return centered_moments(kernels, [kernel.row_means() for kernel in kernels])


def _alignment(kernels: Sequence[TangentKernel], moments: Tensor, i: int, j: int, other: str) -> Alignment:
    norm, other_norm = math.sqrt(float(moments[i, i])), math.sqrt(float(moments[j, j]))
    defined = _defined(kernels[i], norm, "kernel") and _defined(kernels[j], other_norm, other)
    return Alignment(float(moments[i, j]) / norm / other_norm if defined else math.nan, norm)


def _label_kernel(kernel: TangentKernel, labels: Tensor) -> TangentKernel:
    """Y Y^T as a kernel over samples: forward factor Y, unit output gradients."""
    like = kernel.factors.forward
    ones = like.new_ones(1).expand(kernel.n, 1, 1, 1)
    return TangentKernel(
        Factors(labels.to(like.device, like.dtype).unsqueeze(1), ones, bias=False),
        OutputSelection("trace", kernel.outputs.total),
        kernel.precision,
    )


def _defined(kernel: TangentKernel, norm: float, argument: str) -> bool:
    """Whether the centered kernel is more than the rounding of a constant one."""
    size = kernel.shape[0]
    constant = abs(float(kernel.row_means().mean())) * size  # Frobenius norm of the constant part
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
