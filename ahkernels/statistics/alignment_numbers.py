"""The numbers that the statistics of a kernel beside labels are formulas of, first on the device and then as floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ahkernels.centering import Centering
from ahkernels.factors import LayerFactors, NonFiniteError
from ahkernels.inner_products import inner_products, tangent_moments
from ahkernels.kernel import TangentKernel
from ahkernels.ops.moments import KernelMoments, Moments
from ahkernels.outputs import OutputSelection
from ahkernels.statistics.debiased import debiased_alignments
from ahkernels.statistics.degenerate import (
    ROUNDING_IN_FLOAT64,
    RoundingBound,
    undefined_debiased,
    undefined_debiased_labels,
    undefined_kernel,
    undefined_labels,
)
from ahkernels.statistics.degenerate_warning import Finding
from ahkernels.statistics.labels import Labels


class AlignmentNumbers(NamedTuple):
    """A kernel K beside labels, as far as it was measured; what is not defined or not known is nan.

    Attributes:
        inner_product: <C K C, K'> with the kernel K' of the labels.
        norm: ||C K C||_F.
        trace: The trace of K.
        labels_norm: ||C K' C||_F; nan where the labels are the same in every row.
        largest: The largest eigenvalue lambda_1 of C K C.
        relative_error: Standard error of the norm over the norm; 0 where it is exact.
        undefined: Why the alignment is not defined; None where it is.
        debiased_cka: The alignment without the bias of few samples, in [-1, 1].
        debiased_undefined: Why that is not defined, where the alignment is.
    """

    inner_product: float = math.nan
    norm: float = math.nan
    trace: float = math.nan
    labels_norm: float = math.nan
    largest: float = math.nan
    relative_error: float = 0.0
    undefined: Finding | None = None
    debiased_cka: float = math.nan
    debiased_undefined: Finding | None = None

    @classmethod
    def of(
        cls,
        bound: RoundingBound,
        moments: KernelMoments,
        labels: Labels,
        largest: float = math.nan,
        relative_error: float = 0.0,
        bias: Tensor | None = None,
    ) -> AlignmentNumbers:
        """The numbers of a kernel from its moments.

        Args:
            bound: The kernel's rounding bound.
            moments: The kernel's moments.
            labels: The labels that they were measured with.
            largest: See `largest`, which is 0 for a kernel that is zero.
            relative_error: See `relative_error`.
            bias: That of the inner products [2, 2] of the kernel and that of the labels; None to leave it where it is.

        Raises:
            NonFiniteError: If the moments say that there was nan or inf in a factor.
        """
        inner_product, square, trace, constant = moments
        if not math.isfinite(trace):
            raise NonFiniteError(f"factors of {bound.name}: expected finite numbers, got nan or inf")
        norm = math.sqrt(max(square, 0.0))  # of a constant kernel, rounding may leave less than nothing
        largest = largest or math.nan
        undefined = undefined_kernel(bound, norm, constant)
        if undefined:
            largest = math.nan
        undefined = undefined or undefined_labels(labels)
        if undefined:
            inner_product = math.nan
        found = cls(inner_product, norm, trace, labels.norm or math.nan, largest, relative_error, undefined)
        return found if bias is None or undefined else found._debiased(square, bound, bias)

    def _debiased(self, square: float, bound: RoundingBound, bias: Tensor) -> AlignmentNumbers:
        """The same with the debiased alignment, from ||C K C||_F^2 without the rounding of a root."""
        of_both = [[square, self.inner_product], [self.inner_product, self.labels_norm**2]]
        products = torch.tensor(of_both, dtype=torch.float64)
        found = debiased_alignments(products, bias.cpu(), (bound.of_square, ROUNDING_IN_FLOAT64))
        of_kernel, of_labels = found.diagonal().isnan().tolist()
        undefined = undefined_debiased_labels() if of_labels else None
        undefined = undefined_debiased(bound) if of_kernel else undefined
        return self._replace(debiased_cka=float(found[0, 1]), debiased_undefined=undefined)

    @property
    def cka(self) -> float:
        """The alignment A(K, K') (equation 7), in [0, 1]."""
        return within_unit_interval(self.inner_product / self.norm / self.labels_norm) if self.norm else math.nan

    @property
    def findings(self) -> tuple[Finding | None, ...]:
        """Why the alignment, or the debiased one, is not defined."""
        return self.undefined, self.debiased_undefined

    @property
    def cka_standard_error(self) -> float:
        """Standard error of the alignment, from that of the norm."""
        return self.cka * self.relative_error

    @property
    def stable_rank(self) -> float:
        """||C K C||_F^2 / lambda_1^2 (appendix G.1)."""
        return (self.norm / self.largest) ** 2

    @property
    def label_correlation(self) -> float:
        """sum_i lambda_i / lambda_1 <u_i, y~>^2 (appendix G.1)."""
        return self.inner_product / self.largest / self.labels_norm


def within_unit_interval(alignment: float) -> float:
    """An alignment of two positive semi-definite kernels without the rounding that leaves [0, 1]; nan stays."""
    return alignment if math.isnan(alignment) else min(max(alignment, 0.0), 1.0)


def label_moments(kernels: Sequence[TangentKernel], labels: Sequence[Labels]) -> dict[Centering, Moments]:
    """The moments of kernels over the same rows beside labels, for each centering; waits for nothing.

    All come from one op, in which kernels with the same backward factor share the work on it.

    Args:
        kernels: q kernels.
        labels: The same labels for one centering each.
    """
    first, rows = kernels[0], labels[0].rows
    centerings = [of_centering.centering for of_centering in labels]
    if first.o > 1:
        targets = first.samples.center(rows, first.o, "global").view(first.n, first.o)
        return tangent_moments(kernels, targets, centerings)
    # A kernel over samples may be nearly constant, so that y~^T K y~ loses digits where centered tiles do not.
    products = inner_products([*kernels, _label_kernel(first, rows)], "global")
    traces = first.samples.sum(torch.stack([kernel.diagonal().sum() for kernel in kernels]))
    sums = first.samples.sum(torch.stack([kernel.row_means().sum() * kernel.shape[0] for kernel in kernels]))
    return dict.fromkeys(centerings, Moments(products[:-1, -1], products.diagonal()[:-1], traces, sums))


def inner_product(kernel: TangentKernel, labels: Labels) -> Tensor:
    """<C K C, K'> from products, a float64 scalar on the kernel's device."""
    return kernel.quadratic(labels.centered).sum()


def _label_kernel(kernel: TangentKernel, labels: Tensor) -> TangentKernel:
    """Y Y^T as a kernel over samples: forward factor Y, unit output gradients."""
    like = kernel.factors[0].forward
    ones = like.new_ones(1).expand(kernel.n, 1, 1, 1)
    return TangentKernel(
        LayerFactors(labels.to(like.device, like.dtype).unsqueeze(1), ones, bias=False, unchecked=True),
        OutputSelection("trace", kernel.outputs.total),
        kernel.precision,
        samples=kernel.samples,
    )
