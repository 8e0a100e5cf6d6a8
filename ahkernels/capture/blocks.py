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
from ahkernels.ops.plain import jacobian_slices


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
    """Half of the work is for slices of both Jacobians, and half for what of them is in float64."""
    of_pre_activation = first.forward.itemsize * len(total) * first.forward.shape[2]
    of_pre_activation += second.forward.itemsize * total.shape[1] * second.forward.shape[2]
    step = max(1, work // 2 // max(1, of_pre_activation))
    slices = (jacobian_slices(one.forward, one.backward, float(one.bias), step) for one in (first, second))
    for x, y in zip(*slices, strict=True):
        add_products(total, x, y, work // 2)


def _add_by_pairs(total: Tensor, first: LayerFactors, second: LayerFactors, work: int) -> None:
    """For each pair of positions, products of forward factors times those of backward factors.

    Half of the work is for backward factors in float64, and half for forward factors and their products.
    """
    blocks = total.view(first.n, first.o, second.n, second.o)
    a, g, other_a, other_g = (
        factor.transpose(0, 1) for one in (first, second) for factor in (one.forward, one.backward)
    )  # positions come first
    step = max(1, work // 4 // (total.itemsize * first.n * second.n * second.positions))
    for some_a, some_g in zip(torch.split(a, step), torch.split(g, step), strict=True):
        p = total.new_full((len(some_a) * first.n, second.positions * second.n), float(first.bias))
        add_products(p, some_a, other_a, work // 4)
        p = p.view(-1, first.n, 1, second.positions, second.n, 1)
        for x, y in in_float64(some_g, other_g, work // 2):
            for s, t in itertools.product(range(len(x)), range(len(y))):
                q = x[s].flatten(0, 1) @ y[t].flatten(0, 1).T
                blocks.addcmul_(p[s, :, :, t], q.view(blocks.shape))
