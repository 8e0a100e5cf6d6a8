"""Inner products of kernels by tiles, each process taking pairs of its samples with those of others.

Means come first, from sums over the samples of all processes, and leave the tiles as these are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ahkernels import ops
from ahkernels.centering import Centering
from ahkernels.means_by_output import MeanFactors, MeansByOutput, between_outputs, less_half
from ahkernels.ops import KernelBatch
from ahkernels.samples import Pairs, Samples


class InnerProducts(NamedTuple):
    """What there is of q kernels for some centerings.

    Attributes:
        found: Inner products [q, q] for each centering.
        sums: The sums [q] of the entries that the centering takes means of, where they are known.
    """

    found: dict[Centering | None, Tensor]
    sums: dict[Centering | None, Tensor]


def per_output(batch: KernelBatch, precision: str, samples: Samples, *, and_global: bool) -> InnerProducts:
    """Inner products of kernels centered per output, and on demand of the same centered as a whole."""
    factors = MeanFactors.of(batch, samples)
    means = [
        MeansByOutput.of(kernel, of_kernel, samples)
        for kernel, of_kernel in zip(batch.split(), factors.split(batch), strict=True)
    ]
    between = between_outputs([one.of_kernel for one in means], samples) if and_global else None
    on_blocks = torch.stack([one.of_kernel.diagonal(dim1=1, dim2=2).sum() for one in means])
    of_all = torch.stack([one.of_kernel.sum() for one in means])
    sums = samples.sum(torch.stack((of_all, on_blocks))) * samples.n
    of_deviations = [less_half(one.of_deviations, samples) for one in means]
    del means
    squares = _by_tiles(batch, of_deviations, precision, samples, factors)
    found: dict[Centering | None, Tensor] = {"per_output": squares}
    if between is not None:
        found["global"] = squares + between
    return InnerProducts(found, {"global": sums[0], "per_output": sums[1]})


def of_rows(batch: KernelBatch, row_means: Sequence[Tensor], precision: str, samples: Samples) -> Tensor:
    """Inner products [q, q] of kernels less the means [n, o] of their rows; those centered as a whole."""
    means = [(one - samples.sum(one.sum()) / (2 * samples.n * batch.o)).unsqueeze(2) for one in row_means]
    return _by_tiles(batch, means, precision, samples)


def as_they_are(batch: KernelBatch, precision: str, samples: Samples) -> Tensor:
    """Inner products [q, q] of kernels without centering."""
    zeros = torch.zeros(batch.n, batch.o, 1, dtype=torch.float64, device=batch.backward[0].device)
    return _by_tiles(batch, [zeros] * batch.kernel_count, precision, samples)


def _by_tiles(
    batch: KernelBatch, means: Sequence[Tensor], precision: str, samples: Samples, factors: MeanFactors | None = None
) -> Tensor:
    """See `ops.pair_inner_products`."""
    count = len(batch.forward)
    of_factors = ([], []) if factors is None else factors

    def part(tensors: Sequence[Tensor], pairs: Pairs | None) -> Tensor:
        forward, backward, given = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        of_these = batch._replace(forward=list(forward), backward=list(backward))
        return ops.pair_inner_products(of_these, given, precision, *(pairs or Pairs(of_these.n, 0)), *of_factors)

    zero = means[0].new_zeros(batch.kernel_count, batch.kernel_count)
    return samples.sum_over_pairs([*batch.forward, *batch.backward, *means], part, zero)
