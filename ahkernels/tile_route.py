"""How the tiles of near-constant kernels are made from layers with several positions.

A capture chooses pairs of positions or the Jacobian (`ahkernels.capture.route`) before it is known how kernels will be
centered. Where the means of factors leave them first, pairs cost more than that choice takes them to: each pair of
positions has offsets of its own, so that positions cannot be rows of a tile. Tiles are then whole panels of samples,
however few there are, and the forward Gram at each pair of positions is made once more for each pair of outputs where
those of all pairs fit no cache.
"""

from __future__ import annotations

import math

from ahkernels.centering import Centering
from ahkernels.ops.batch import KernelBatch, Layer
from ahkernels.ops.build import TILING

_CACHED_BYTES = 1 << 20  # of forward Grams that the tiles of all outputs share
_PER_NUMBER = (
    200  # multiply-adds that cost as much as to write, pack and read one number; see `ahkernels.capture.route`
)
_FLOAT64 = 2  # times the cost of float32, in which means do not leave a Jacobian


def for_centering(batch: KernelBatch, centering: Centering | None) -> KernelBatch:
    """The batch with layers by their Jacobian where that costs less, if centering makes its kernels near-constant."""
    if centering is None or not batch.near_constant(centering):
        return batch
    layers = [layer for kernel in batch.kernels() for layer in kernel]
    return batch._replace(by_jacobian=[one.by_jacobian or _cheaper_by_jacobian(one) for one in layers])


def _cheaper_by_jacobian(layer: Layer) -> bool:
    (n, s, o, m), d = layer.backward.shape, layer.forward.shape[2]
    if s == 1 or d == 0:
        return False
    panel, rows = TILING["panel"], n * o
    of_pair = m if 4 * (s * panel) ** 2 <= _CACHED_BYTES else m + d
    by_pairs = rows * o * _padded(n, panel) * s**2 * of_pair
    columns = _padded(rows, panel) if n < panel else o * _padded(n, panel)
    blocks = math.ceil(rows / TILING["block_rows_in_memory"])
    formed = blocks * rows * m * d * _FLOAT64
    return rows * columns * m * d + formed * (2 * s + _PER_NUMBER) < by_pairs


def _padded(count: int, step: int) -> int:
    return -(-count // step) * step
