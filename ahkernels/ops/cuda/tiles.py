"""What the CUDA kernels do: write a factor as a sum of bf16 parts, and all that is done tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from ahkernels.ops.build import TILING
from ahkernels.ops.near_constant import TileOffsets

TILE = TILING["cuda_tile"]
# A panel has a multiple of so many samples, and so whole tiles of K at any number of outputs.
PANEL_SAMPLES = TILE
SLICE = 64  # numbers along k that a tensor copy brings (kKAlignment)
# Layers of which one pass makes the tiles of their sum.
MOST_LAYERS = TILING["cuda_layers"]


def pack_parts(factor: Tensor, scale: Tensor, count: int) -> Tensor:
    """A factor [n, s, o, m] times scale as bf16 parts [count, s, rows, k]: row x*o + i, and zeros up to whole tiles."""
    result: Tensor = torch.ops.ahkernels.pack_parts(factor, scale, count)
    return result


def pack_slices(factor: Tensor, scale: Tensor, parts: Tensor, first: int) -> None:
    """Writes a factor [n, s, o, m] times scale to parts [count, slices, rows, 64] as they are in `tangent_tiles`.

    From slice `first` on come those of the first position along m, then those of the second and so on.
    """
    torch.ops.ahkernels.pack_slices(factor, scale, parts, first)


def tangent_tiles(
    parts: Tensor,
    p: Tensor,
    means: Tensor,
    unscale: Tensor,
    n: int,
    o: int,
    sample: int,
    straight: int,
    layers: list[int],
    result: str,
    entries: Tensor,
) -> Tensor:
    """Computes the entries of K, less means, in the rows of the samples that p begins at, and does what `result` says.

    Args:
        parts: Backward factor from `pack_parts`; of several layers or positions from `pack_slices`.
        p: Forward Grams of samples from `sample` on, at each pair of positions of each layer, float32 [pairs, samples
            of the rows, n - sample].
        means: [2, rows], subtracted from rows and from columns, float32; empty for "matrix".
        unscale: Two float64 numbers that "matrix" multiplies entries by; else empty.
        n: Samples.
        o: Outputs.
        sample: A multiple of PANEL_SAMPLES.
        straight: The largest k whose sums are left to the tensor cores.
        layers: Positions of a layer and its slices at each of them, then those of the next; empty for `pack_parts`.
        result: "squares" and "products" (with `entries`): sums over the rows and all columns, counting what lies
            below the diagonal of K for these rows' columns too; "matrix": writes K and its mirror image to `entries`
            [n*o, n*o]; "rows": writes the tiles on and above the diagonal to `entries` [rows of the panel, n*o].
        entries: Read or written; empty for "squares".

    Returns:
        float64 parts of the sum, empty for "matrix" and "rows".
    """
    sums: Tensor = torch.ops.ahkernels.tangent_tiles(parts, p, means, unscale, n, o, sample, straight, result, entries)
    return sums


def deviation_tiles(
    parts: Tensor,
    gram: Tensor,
    offsets: TileOffsets,
    n: int,
    o: int,
    sample: int,
    straight: int,
    result: str,
    entries: Tensor,
) -> Tensor:
    """As `tangent_tiles`, for T of a near-constant kernel in the unit of its offsets; without "matrix".

    Args:
        parts: Deviations of the backward factor from `pack_parts`.
        gram: Gram of the deviations of the forward factor, like p there.
        offsets: What goes into entries beside both.
        n: As there, and so is what follows.
        o: Outputs.
        sample: A multiple of PANEL_SAMPLES.
        straight: The largest k whose sums are left to the tensor cores.
        result: "squares", "products" or "rows".
        entries: Read or written; empty for "squares".

    Returns:
        float64 parts of the sum, empty for "rows".
    """
    numbers = offsets.p, offsets.pairs, offsets.factors
    sums: Tensor = torch.ops.ahkernels.deviation_tiles(parts, gram, *numbers, n, o, sample, straight, result, entries)
    return sums
