"""Alignment without the bias of few samples, from the unbiased estimator of HSIC.

The inner product <T, S> of two centered kernels over n samples contains the products of each sample with itself, which
make up the bias of the alignment. With K~ and L~ the kernels K and L with zeros on the diagonal,

    n (n - 3) HSIC_1(K, L) = <K~, L~> + 1'K~1 1'L~1 / ((n - 1) (n - 2)) - 2 / (n - 2) 1'K~ L~1

leaves them out, and the mean of HSIC_1 over samples is the same for every n (Song et al., 2012, equation 5; for
alignments Nguyen, Raghu and Kornblith, 2021). It does not change when a number is added to a row and a column of K, so
that the centered kernels may take the places of K and L. Their rows have zero sums: those of T~ are -d with the
diagonal d of T. With the diagonal e of S this leaves

    n (n - 3) HSIC_1(K, L) = <T, S> - n / (n - 2) <d, e> + (1'd) (1'e) / ((n - 1) (n - 2)),

numbers that are as accurate as the centered kernels, however close to constant K is. It is the inner product of the
projections of K and L to the matrices with a zero diagonal and rows that sum to zero. So HSIC_1(K, K) is at least 0,
and the debiased alignment lies in [-1, 1].

Kernels over several outputs that are centered per output are sums over pairs of outputs, and so are their inner
products: samples are drawn by chance, and outputs are not. In place of d and e they have the blocks [o, o] of each
sample, whose inner products are summed. All of the above holds for the part of T_ij that stays the same when two
samples change places. The part that changes its sign has a diagonal of zeros, and (n - 1) (n - 2) in place of n (n -
3). One pass over the kernels does not tell the two parts apart, so that both have n (n - 3) here, and the mean of the
second one is 1 + 2 / (n (n - 3)) times what it should be: 1.0009 times with 50 samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ahkernels.centering import Centering
from ahkernels.diagonal_blocks import centered_diagonal_blocks
from ahkernels.inner_products import over_output_pairs
from ahkernels.kernel import TangentKernel

LEAST_SAMPLES = 4


def require_flag(value: object) -> None:
    """Raises TypeError naming `debiased` for anything but True and False."""
    if not isinstance(value, bool):
        raise TypeError(f"debiased: expected True or False, got {value!r}")


def require_debiased(argument: str, n: int, outputs: int, centerings: Sequence[Centering]) -> None:
    """Raises ValueError naming the argument where there is no debiased alignment.

    Args:
        argument: The argument that asks for it, for the message.
        n: The number of samples.
        outputs: The number of rows for each sample.
        centerings: How kernels are centered.
    """
    if n < LEAST_SAMPLES:
        raise ValueError(f"{argument}: expected at least {LEAST_SAMPLES} samples to debias alignments, got {n}")
    if outputs > 1 and "global" in centerings:
        raise ValueError(
            f'{argument}: expected centering="per_output", or kernels over samples alone such as those of '
            f'outputs="trace", to debias alignments, got centering="global" and {outputs} rows for each sample'
        )


def bias_of_inner_products(kernels: Sequence[TangentKernel], labels: Tensor | None = None) -> Tensor:
    """What the products of samples with themselves are of the inner products of kernels centered per output.

    Args:
        kernels: q kernels over the same rows.
        labels: Centered rows Y~ of labels, [n*o, 1], or [n, columns] for kernels over samples alone, for the samples
            here: their kernel is the last one then.

    Returns:
        <T, S> - n (n - 3) HSIC_1 of every two of them, float64 [q, q] (with labels [q + 1, q + 1]) on their device.
    """
    first = kernels[0]
    rows = None if labels is None else labels.to(first.device).view(first.n, first.o, labels.shape[1])

    def of_outputs(some: Sequence[TangentKernel], outputs: Tensor) -> Tensor:
        blocks = [centered_diagonal_blocks(one) for one in some]
        if rows is not None:
            blocks.append(rows[:, outputs] @ rows[:, outputs].mT)
        return _bias(torch.stack(blocks).flatten(2), first)

    return over_output_pairs(kernels, of_outputs)


def _bias(blocks: Tensor, kernel: TangentKernel) -> Tensor:
    """The bias of inner products [q, q] from diagonal blocks [q, n, o*o] for the samples here."""
    n, together = kernel.samples.n, blocks.flatten(1)
    products = kernel.samples.sum(together @ together.T)
    totals = kernel.samples.sum(blocks.sum(1))
    return n / (n - 2) * products - totals @ totals.T / ((n - 1) * (n - 2))


def debiased_alignments(products: Tensor, bias: Tensor, bounds: Sequence[float]) -> Tensor:
    """The debiased alignment of every two kernels, [q, q] in [-1, 1]; nan where too little is left of a kernel.

    Args:
        products: Inner products <T, S> [q, q] of the centered kernels, float64.
        bias: Theirs, see `bias_of_inner_products`.
        bounds: How much of <T, T> must be left of each kernel; see `RoundingBound.of_square`.
    """
    unbiased = products - bias
    squares = unbiased.diagonal()
    left = squares > products.new_tensor(bounds) * products.diagonal()
    norms = torch.where(left, squares, torch.nan).sqrt()
    return (unbiased / norms[:, None] / norms).clamp(-1, 1)
