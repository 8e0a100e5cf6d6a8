"""Inner products and moments of kernels, with no K in memory.

They come from one pass over tiles, or from another order of contraction where that costs less.

Centering per output holds an offset for each sample and pair of outputs beside the tiles. Where that would exceed
OFFSET_BYTES, the outputs are taken in groups.

Where the samples are spread over several processes, the means of the rows come first, from products with the kernel,
and then each process takes tiles of pairs of its samples with those of others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ahkernels import contraction, ops
from ahkernels.centering import Centering
from ahkernels.distributed import pairs
from ahkernels.ops import KernelBatch, Moments
from ahkernels.tile_route import for_centering

if TYPE_CHECKING:
    from ahkernels.kernel import TangentKernel

OFFSET_BYTES = 512 << 20
_BYTES_OF_OFFSET = 36  # of an offset and the sums that it enters
_LEAST_GROUP = 4  # outputs in a group, however little OFFSET_BYTES allow


def tangent_moments(
    kernels: Sequence[TangentKernel], v: Tensor, centerings: Sequence[Centering]
) -> dict[Centering, Moments]:
    """The moments of kernels over the same rows, of several outputs, for each centering.

    Args:
        kernels: q kernels.
        v: Labels centered over all rows, [n, o]. Per output they are centered once more.
        centerings: Any of "global" and "per_output"; both come from one pass.
    """
    v = v.detach().to(kernels[0].device, torch.float64)
    if kernels[0].samples.sharded:
        sharded = [_from_squares(one, v, *sharded_inner_products([one], centerings)) for one in kernels]
        return {one: Moments(*torch.stack([found[one] for found in sharded]).unbind(1)) for one in centerings}
    in_another_order = [_in_another_order(one, v, centerings) for one in kernels]
    rest = [one for one, found in zip(kernels, in_another_order, strict=True) if found is None]
    by_tiles = _by_tiles(rest, v, centerings) if rest else {}
    if len(rest) == len(kernels):
        return by_tiles
    moments: dict[Centering, Moments] = {}
    for centering in centerings:
        of_tiles = iter(by_tiles[centering].stacked() if rest else ())
        rows = [next(of_tiles) if found is None else found[centering] for found in in_another_order]
        moments[centering] = Moments(*torch.stack(rows).unbind(1))
    return moments


def _in_another_order(
    kernel: TangentKernel, v: Tensor, centerings: Sequence[Centering]
) -> dict[Centering, Tensor] | None:
    """The moments [4] of a kernel for each centering, if there is a cheaper order of contraction than tiles."""
    squares = contraction.inner_products(kernel.batch, centerings, kernel.precision)
    return None if squares is None else _from_squares(kernel, v, squares, {})


def _from_squares(
    kernel: TangentKernel,
    v: Tensor,
    squares: Mapping[Centering | None, Tensor],
    sums: Mapping[Centering | None, Tensor],
) -> dict[Centering, Tensor]:
    """The moments [4] of a kernel for each centering, from its squared norm [1, 1], and its sum [1] if it is known."""
    samples = kernel.samples
    columns = {"global": v, "per_output": v - samples.sum(v.sum(0)) / samples.n}
    products = dict(zip(columns, kernel.quadratic(torch.stack(list(columns.values()), 2)), strict=True))
    trace = samples.sum(kernel.diagonal().sum())
    found: dict[Centering, Tensor] = {}
    for one in squares:
        if one is not None:
            product = products[one]
            of_ones = sums[one] if one in sums else _sum(kernel, one)
            found[one] = torch.stack((product, squares[one].to(product).squeeze(), trace, of_ones.squeeze()))
    return found


def _sum(kernel: TangentKernel, centering: Centering) -> Tensor:
    """The sum of the entries that a centering takes means of, on the kernel's device."""
    if centering == "per_output":
        return kernel.sum_of_diagonal_blocks()
    ones = torch.ones(kernel.rows_here, 1, dtype=torch.float64, device=kernel.device)
    return kernel.quadratic(ones)


def _by_tiles(kernels: Sequence[TangentKernel], v: Tensor, centerings: Sequence[Centering]) -> dict[Centering, Moments]:
    found: dict[Centering, Moments] = {}
    if "per_output" not in centerings or not _fit_offsets(kernels):
        found["global"] = _moments(kernels, v, per_output=False)[0]
    if "per_output" in centerings and found:

        def of_outputs(some: Sequence[TangentKernel], outputs: Tensor) -> Tensor:
            return _moments(some, v[:, outputs], per_output=True)[1].stacked()

        found["per_output"] = Moments(*over_output_pairs(kernels, of_outputs).unbind(1))
    elif "per_output" in centerings:
        found["global"], found["per_output"] = _moments(kernels, v, per_output=True)
    return {one: found[one] for one in centerings}


def inner_products(kernels: Sequence[TangentKernel], centering: Centering | None) -> Tensor:
    """<C K_a C, C K_b C>_F of every two of q kernels over the same rows, float64 [q, q] on their device."""
    if kernels[0].samples.sharded:
        return sharded_inner_products(kernels, [centering]).found[centering].to(kernels[0].device)
    precision = kernels[0].precision
    found = contraction.inner_products(kernel_batch(kernels), [centering], precision)
    if found is not None:
        return found[centering].to(kernels[0].device)
    batch = kernel_batch(kernels, centering)
    if centering == "per_output" and not _fit_offsets(kernels):
        return over_output_pairs(
            kernels, lambda some, _: ops.per_output_inner_products(kernel_batch(some, centering), precision)[1]
        )
    if centering == "per_output" and kernels[0].o > 1:
        return ops.per_output_inner_products(batch, precision)[1]
    if centering is None:
        means = [torch.zeros(one.n, one.o, dtype=torch.float64, device=one.device) for one in kernels]
    else:
        means = [one.row_means() for one in kernels]
    return ops.centered_inner_products(batch, means, precision)


def sharded_inner_products(
    kernels: Sequence[TangentKernel], centerings: Sequence[Centering | None]
) -> pairs.InnerProducts:
    """`inner_products` for each centering, of kernels whose samples are spread over processes."""
    batch, precision, samples = kernel_batch(kernels), kernels[0].precision, kernels[0].samples
    found = contraction.inner_products(batch, centerings, precision, samples)
    if found is not None:
        return pairs.InnerProducts({one: found[one] for one in centerings}, {})

    def of_outputs(some: Sequence[TangentKernel], _: Tensor) -> Tensor:
        own = kernel_batch(some, "per_output")
        return pairs.per_output(own, precision, samples, and_global=False).found["per_output"]

    found = {}
    sums: dict[Centering | None, Tensor] = {}
    for one in centerings:
        if one in found:
            continue
        if one is None:
            found[None] = pairs.as_they_are(batch, precision, samples)
        elif batch.o == 1:
            both = pairs.per_output(kernel_batch(kernels, one), precision, samples, and_global=False)
            found["global"] = found["per_output"] = both.found["per_output"]
        elif "per_output" in centerings and _fit_offsets(kernels):
            own = kernel_batch(kernels, "per_output")
            both = pairs.per_output(own, precision, samples, and_global="global" in centerings)
            found |= both.found
            sums |= both.sums
        elif one == "per_output":
            found[one] = over_output_pairs(kernels, of_outputs)
        else:
            found[one] = pairs.of_rows(batch, [kernel.row_means() for kernel in kernels], precision, samples)
    return pairs.InnerProducts({one: found[one] for one in centerings}, sums)


def kernel_batch(kernels: Sequence[TangentKernel], centering: Centering | None = None) -> KernelBatch:
    """The kernels as the ops take them that make their tiles with a centering."""
    return for_centering(KernelBatch.of([one.factors for one in kernels]), centering)


def _moments(kernels: Sequence[TangentKernel], v: Tensor, *, per_output: bool) -> tuple[Moments, ...]:
    batch = kernel_batch(kernels, "per_output" if per_output else None)
    return ops.tangent_moments(batch, v.contiguous().unsqueeze(2), kernels[0].precision, per_output)


def _fit_offsets(kernels: Sequence[TangentKernel]) -> bool:
    return fit_offsets(len(kernels), kernels[0].samples.most, kernels[0].o)


def fit_offsets(count: int, n: int, o: int) -> bool:
    """Whether what centering per output holds beside the tiles fits OFFSET_BYTES.

    Args:
        count: The number of kernels.
        n: The most samples of any process.
        o: The number of outputs.
    """
    return o == 1 or count * n * o**2 * _BYTES_OF_OFFSET <= OFFSET_BYTES


def groups_of_outputs(count: int, n: int, o: int) -> Sequence[Tensor]:
    """Groups of the outputs of which any two fit OFFSET_BYTES together, or are small; arguments as before."""
    in_two_groups = math.isqrt(OFFSET_BYTES // max(1, count * n * _BYTES_OF_OFFSET))
    return torch.arange(o).tensor_split(-(-o // max(in_two_groups // 2, _LEAST_GROUP)))


def over_output_pairs(
    kernels: Sequence[TangentKernel], numbers: Callable[[Sequence[TangentKernel], Tensor], Tensor]
) -> Tensor:
    """Numbers that are sums over pairs of outputs, from kernels over so many outputs at a time as OFFSET_BYTES allow.

    The outputs are split into groups. Kernels over the union of two groups have every pair of outputs once where the
    outputs are in different groups, and more often where they are in the same one: so many sums over single groups are
    subtracted again.

    Args:
        kernels: q kernels over the same rows.
        numbers: The numbers of kernels over some of the outputs, and of these outputs [k].
    """
    if _fit_offsets(kernels):
        return numbers(kernels, torch.arange(kernels[0].o, device=kernels[0].device))
    groups = groups_of_outputs(len(kernels), kernels[0].samples.most, kernels[0].o)

    def of_union(*parts: Tensor) -> Tensor:
        outputs = torch.cat(parts)
        return numbers([one.with_outputs(outputs.tolist()) for one in kernels], outputs.to(kernels[0].device))

    if len(groups) <= 2:
        return of_union(*groups)
    unions = sum(of_union(*pair) for pair in itertools.combinations(groups, 2))
    alone = sum(of_union(group) for group in groups)
    return torch.as_tensor(unions - (len(groups) - 2) * alone)
