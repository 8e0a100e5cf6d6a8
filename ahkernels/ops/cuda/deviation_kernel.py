"""A near-constant kernel of one layer with one position: the means leave its factors, and tiles hold what is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ahkernels.ops.batch import KernelBatch, Layer
from ahkernels.ops.cuda import tiles
from ahkernels.ops.cuda.scaled_kernel import ScaledKernel
from ahkernels.ops.near_constant import NearConstant, TileOffsets
from ahkernels.ops.scaling import largest_magnitudes, to_one

# Tiles of near-constant kernels take some 200 small operations more than float64 products of torch. With fewer
# multiply-adds than these, such products take less time even where float64 is slow.
LEAST_MULTIPLY_ADDS = 1 << 28
# Of a row of K and an output, in what tiles of near-constant kernels read: offsets of 8 bytes have 32 bits.
MOST_PAIRS = 1 << 29


@dataclass(frozen=True)
class DeviationKernel:
    """A near-constant kernel, of which the tiles compute T.

    Attributes:
        numbers: All else of the kernel.
        scaled: The kernel of the deviations, of whose Grams T is made.
        offsets: What else goes into T.
    """

    numbers: NearConstant
    scaled: ScaledKernel
    offsets: TileOffsets

    @classmethod
    def of(cls, layer: Layer, precision: str) -> DeviationKernel:
        """Takes the means out of the factors of a layer with one position, scales and packs them."""
        numbers = NearConstant.of(layer)
        largest = largest_magnitudes([numbers.parts])[:, 0]
        scales = to_one(largest)
        scaled = ScaledKernel.of([numbers.parts], precision, (scales[0], scales[1], scales.prod().square()))
        sizes = (1 / scales).masked_fill(largest == 0, 0.0)  # zeros are nothing at any scale
        return cls(numbers, scaled, TileOffsets.of(numbers, sizes, scaled.parts.shape[2]))

    def tiles(self, rows: slice, result: str, *, entries: Tensor | None = None) -> Tensor:
        """Calls `deviation_tiles` for the samples in rows; arguments are as there."""
        scaled, gram = self.scaled, self.scaled.forward_gram(rows)
        entries = gram.new_empty(0) if entries is None else entries
        where = scaled.n, scaled.o, rows.start
        return tiles.deviation_tiles(scaled.parts, gram, self.offsets, *where, scaled.straight, result, entries)


def deviation_kernels(batch: KernelBatch, precision: str) -> list[DeviationKernel] | None:
    """Near-constant kernels of one layer with one position each; None for others, and where tiles do not serve."""
    one_layer = len(batch.forward) == batch.kernel_count and not any(batch.by_jacobian)
    if batch.dtype == torch.float64 or not one_layer or any(backward.shape[1] > 1 for backward in batch.backward):
        return None
    if -(-batch.n * batch.o // tiles.TILE) * tiles.TILE * batch.o >= MOST_PAIRS:
        return None
    if (batch.n * batch.o) ** 2 * sum(backward.shape[3] for backward in batch.backward) < LEAST_MULTIPLY_ADDS:
        return None
    return [DeviationKernel.of(layer, precision) for (layer,) in batch.kernels()]
