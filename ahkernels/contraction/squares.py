"""Squared norms of a centered kernel in the order of contraction that costs least and has digits enough."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ahkernels.centering import Centering
from ahkernels.contraction import outputs_first, parameters_first
from ahkernels.contraction.order import LayerShape, order_of
from ahkernels.ops import KernelBatch

# How many times ||C K C||^2 the square ||K||^2 that it is subtracted from may be, by the precision that is asked for:
# the squares have relative errors of about 3e-8 from products in float32, and of 1e-15 in float64.
_MOST_IN_FLOAT32 = {"highest": 16.0, "high": 256.0, "medium": 4096.0}
_MOST_IN_FLOAT64 = 1e9


def squared_norms(
    batch: KernelBatch, centerings: Sequence[Centering | None], precision: str
) -> dict[Centering | None, float] | None:
    """||C K C||_F^2 of one kernel for each centering, if there is a cheaper order than tiles.

    Args:
        batch: One kernel.
        centerings: The centerings; None is for the kernel as it is.
        precision: "highest", "high" or "medium".

    Returns:
        The squares, or None where tiles cost less, or a centered norm is so small beside that of the kernel that only
        tiles have its digits.
    """
    shapes = [
        LayerShape(a.shape[1], a.shape[2], g.shape[3], bias > 0, by_jacobian)
        for a, g, bias, by_jacobian in batch.kernels()[0]
    ]
    order = order_of(batch.n, batch.o, shapes, by_output="per_output" in centerings)
    if order == "tiles":
        return None
    single = torch.promote_types(batch.dtype, torch.float32)
    if order == "parameters first":
        return parameters_first.squared_norms(batch, centerings, single)
    most = {single: _MOST_IN_FLOAT32[precision], torch.float64: _MOST_IN_FLOAT64}
    for dtype in most:
        found = outputs_first.squared_norms(batch, centerings, dtype)
        least = min(found[one] for one in centerings)
        if found[None] <= most[dtype] * least or not math.isfinite(least):
            return found
    return None
