"""Centered kernel alignment (equations 6 and 7 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ahkernels.centering import Centering, require_centering
from ahkernels.distributed.together import together
from ahkernels.inner_products import inner_products
from ahkernels.kernel import TangentKernel, require_kernel
from ahkernels.statistics.alignment_numbers import AlignmentNumbers, label_moments
from ahkernels.statistics.debiased import (
    bias_of_inner_products,
    debiased_alignments,
    require_debiased,
    require_flag,
)
from ahkernels.statistics.degenerate import RoundingBound, constant_part, undefined_debiased, undefined_kernel
from ahkernels.statistics.degenerate_warning import OneWarning
from ahkernels.statistics.labels import Labels


@together
def cka(
    kernel: TangentKernel,
    other: Tensor | TangentKernel,
    *,
    centering: Centering = "global",
    debiased: bool = False,
) -> float:
    """Centered kernel alignment A(K, K') = <C K C, C K' C> / (||C K C||_F ||C K' C||_F), in [0, 1].

    With labels, K' = Y Y^T. For kernels over (sample, output) pairs Y is the vector of all targets (equation 7); for
    n x n kernels (`outputs` "trace" and "sum") its rows are the samples' targets.

    Args:
        kernel: A tangent kernel.
        other: Class indices [n], a target matrix [n, o], or another kernel over as many rows.
        centering: "global": C = I - 11^T/(on), one mean over all samples and outputs (equation 6). "per_output":
            C = (I_n - 11^T/n) (x) I_o, each output over the samples, as in the figures of the paper. For kernels over
            samples alone both are the same.
        debiased: Whether to leave out the products of each sample with itself, on which alignments of few samples
            depend much. <C K C, C K' C> and the squares of both norms then come from the unbiased estimator of HSIC
            (Song et al., 2012, equation 5; Nguyen, Raghu and Kornblith, 2021), whose mean over samples does not depend
            on n. The alignment then lies in [-1, 1], and around 0 where kernel and labels have nothing in common. It is
            for kernels over samples alone (`outputs` "trace", "sum" or one output), and for several outputs with
            centering "per_output". There it is the estimator over samples, summed over pairs of outputs, since samples
            are drawn by chance and outputs are not. The mean over outputs that "global" takes contains products of a
            sample with itself, too, which one pass does not tell apart.

    Returns:
        The alignment; nan, with a `DegenerateKernelWarning`, if either centered kernel is zero.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit, labels are out of range, or there is no debiased alignment:
            of less than 4 samples, or of several outputs centered globally. The message names the argument.
        TypeError: For another type.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 3
        >>> kernel = ah.tangent_kernels(model, x)["0"]
        >>> 0 < ah.cka(kernel, y) < 1, round(ah.cka(kernel, kernel), 6)
        (True, 1.0)
        >>> ah.cka(kernel, y, centering="per_output", debiased=True) < ah.cka(kernel, y, centering="per_output")
        True
    """
    require_kernel("kernel", kernel)
    require_centering(centering)
    require_flag(debiased)
    if isinstance(other, TangentKernel):
        return float(alignment_matrix((kernel, other), ("kernel", "other"), centering, debiased=debiased)[0, 1])
    labels = Labels(kernel.outputs, other, kernel.samples, centering)
    bias = None
    if debiased:
        require_debiased("debiased", kernel.samples.n, kernel.o, [centering])
        bias = bias_of_inner_products([kernel], labels.centered)
    (moments,) = label_moments([kernel], [labels])[centering].of_each()
    numbers = AlignmentNumbers.of(RoundingBound.of(kernel, centering), moments, labels, bias=bias)
    OneWarning().warn(numbers.findings)
    return numbers.debiased_cka if debiased else numbers.cka


def alignment_matrix(
    kernels: Sequence[TangentKernel], arguments: Sequence[str], centering: Centering, *, debiased: bool
) -> Tensor:
    """A(K, K') of every two kernels, float64 [L, L] on the CPU; nan where a centered kernel is zero.

    All come from one pass over tiles of all kernels.

    Args:
        kernels: L kernels over the same rows.
        arguments: The name of the argument that each was passed as, for messages.
        centering: See `cka`.
        debiased: See `cka`.

    Raises:
        ValueError: If the kernels are not over the same rows, or differ in dtype or device, or there are no debiased
            alignments.
    """
    first = kernels[0]
    first.samples.everywhere(lambda: _require_alike(kernels))
    if debiased:
        require_debiased("debiased", first.samples.n, first.o, [centering])
    products = inner_products(kernels, centering).cpu()
    norms = products.diagonal().sqrt()
    bounds = [
        RoundingBound.of(kernel, centering, argument) for kernel, argument in zip(kernels, arguments, strict=True)
    ]
    undefined = [
        undefined_kernel(bound, norm, float(constant_part(kernel, centering)))
        for kernel, bound, norm in zip(kernels, bounds, norms.tolist(), strict=True)
    ]
    if debiased:
        bias = bias_of_inner_products(kernels).cpu()
        alignments = debiased_alignments(products, bias, [bound.of_square for bound in bounds])
        for i, bound in enumerate(bounds):
            if undefined[i] is None and math.isnan(alignments[i, i]):
                undefined[i] = undefined_debiased(bound)
    else:
        alignments = (products / norms[:, None] / norms).clamp(0, 1)
    OneWarning().warn(undefined)
    unknown = torch.tensor([one is not None for one in undefined])
    return alignments.masked_fill(unknown[:, None] | unknown, math.nan)


def _require_alike(kernels: Sequence[TangentKernel]) -> None:
    for other in kernels[1:]:
        _require_like(kernels[0], other)


def _require_like(kernel: TangentKernel, other: TangentKernel) -> None:
    n, other_n = kernel.samples.n, other.samples.n
    if n != other_n or kernel.o != other.o:
        raise ValueError(
            f"other: expected a kernel of {n} samples and {kernel.o} rows for each, got {other_n} and {other.o}"
        )
    if kernel.n != other.n:
        raise ValueError(f"other: expected a kernel of {kernel.n} samples in this process, got {other.n}")
    dtype, other_dtype = (one.factors[0].forward.dtype for one in (kernel, other))
    if dtype != other_dtype:
        raise ValueError(f"other: expected the dtype of kernel, {dtype}, got {other_dtype}")
    if kernel.device != other.device:
        raise ValueError(f"other: expected the device of kernel, {kernel.device}, got {other.device}")
