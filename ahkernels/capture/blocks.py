"""K of a layer with a rule whose factors do not fit: the kernels between blocks of samples, one pair at a time.

A block is captured as all samples would be, and certified the first time it comes. It stays while all samples after it
come in other blocks, and then the next one does: with B blocks that stay, K takes about (B + 1) / 2 passes over the
model.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ahkernels.capture.kept import Kept
from ahkernels.capture.memory import Memory
from ahkernels.capture.plan import PlannedLayer
from ahkernels.capture.root import add_products, in_float64, square_root
from ahkernels.factors import LayerFactors
from ahkernels.ops.plain import jacobian_of_weights

# The share, one in so many, of its workspace that each of two things may take here at a time: an allocator seldom finds
# room for one slice where another one has been.
_SHARE = 4


class KernelInBlocks:
    """K of a layer, as far as its blocks have come.

    Args:
        layer: The layer.
        memory: The division of the memory budget.
        grams: Whether its forward and backward Gram are asked for.
    """

    def __init__(self, layer: PlannedLayer, memory: Memory, *, grams: bool) -> None:
        self._n, self._r, self._work = memory.n, memory.r, memory.work
        rows = memory.n * memory.r
        self._kernel = torch.zeros(rows, rows, dtype=torch.float64, device=memory.device)
        self._kept = Kept(memory.n, layer, grams=grams)
        self._dtype = torch.float32

    def add(self, rows: slice, first: LayerFactors, columns: slice, second: LayerFactors) -> None:
        """Adds the kernel between two blocks of samples, the second of which is not before the first."""
        in_rows, in_columns = (slice(self._r * one.start, self._r * one.stop) for one in (rows, columns))
        add_kernel(self._kernel[in_rows, in_columns], first, second, self._work)
        self._dtype = first.backward.dtype

    def add_sums(self, samples: slice, block: Kept) -> None:
        """Adds what the Grams take of a block."""
        self._kept.add_sums(samples, block)

    def kept(self) -> Kept:
        """What is kept of the layer, once all pairs of blocks have come: a root of K."""
        root = square_root(self._kernel, self._dtype)
        self._kept.add_jacobian(root.view(self._n, self._r, 1, -1).permute(1, 0, 2, 3))
        return self._kept


def add_kernel(total: Tensor, first: LayerFactors, second: LayerFactors, work: int) -> None:
    """Adds the kernel between two sample sets of a layer to a total, in float64.

    Args:
        total: [n o, n' o], float64.
        first: The factors of n samples.
        second: Those of n' samples.
        work: Bytes that this may take for itself; the smallest slice may take more.
    """
    if 0 in (first.backward.shape[3], second.backward.shape[3]):
        return  # not called for these samples
    if first.by_jacobian:
        _add_by_jacobian(total, first, second, work)
    else:
        _add_by_pairs(total, first, second, work)


def _add_by_jacobian(total: Tensor, first: LayerFactors, second: LayerFactors, work: int) -> None:
    """A slice of the pre-activations at a time: slices of both Jacobians, and products of them."""
    s, d = first.forward.shape[1:]
    step = max(1, work // _SHARE // (first.forward.itemsize * sum(total.shape) * (s + d)))
    for g, other_g in zip(torch.split(first.backward, step, 3), torch.split(second.backward, step, 3), strict=True):
        j, other_j = jacobian_of_weights(first.forward, g), jacobian_of_weights(second.forward, other_g)
        add_products(total, j, other_j, work // _SHARE)
        del j, other_j  # before the next ones
    if first.bias:
        add_products(total, first.backward.sum(1), second.backward.sum(1), work // _SHARE)


def _add_by_pairs(total: Tensor, first: LayerFactors, second: LayerFactors, work: int) -> None:
    """For each pair of positions, products of forward factors times those of backward factors."""
    blocks = total.view(first.n, first.o, second.n, second.o)
    a, g, other_a, other_g = (
        factor.transpose(0, 1) for one in (first, second) for factor in (one.forward, one.backward)
    )  # positions come first
    step = max(1, work // _SHARE // (total.itemsize * first.n * second.n * second.positions))
    for some_a, some_g in zip(torch.split(a, step), torch.split(g, step), strict=True):
        p = total.new_full((len(some_a) * first.n, second.positions * second.n), float(first.bias))
        add_products(p, some_a, other_a, work // _SHARE)
        p = p.view(-1, first.n, 1, second.positions, second.n, 1)
        for x, y in in_float64(some_g, other_g, work // _SHARE):
            for s, t in itertools.product(range(len(x)), range(len(y))):
                q = x[s].flatten(0, 1) @ y[t].flatten(0, 1).T
                blocks.addcmul_(p[s, :, :, t], q.view(blocks.shape))
            del x, y  # before the next ones
