"""Inner products of centered kernels in the order of contraction that costs least and has digits enough."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ahkernels.autocast import without_autocast
from ahkernels.centering import Centering
from ahkernels.contraction import outputs_first, parameters_first
from ahkernels.contraction.order import LayerShape, order_of
from ahkernels.ops import KernelBatch
from ahkernels.precision import products_are_in_float32
from ahkernels.samples import Samples

# How many times ||C K C||^2 the square ||K||^2 that it is subtracted from may be, by the precision that is asked for:
# the squares have relative errors of about 3e-8 from products in float32, and of 1e-15 in float64.
_MOST_IN_FLOAT32 = {"highest": 16.0, "high": 256.0, "medium": 4096.0}
_MOST_IN_FLOAT64 = 1e9


@without_autocast()
def inner_products(
    batch: KernelBatch, centerings: Sequence[Centering | None], precision: str, samples: Samples | None = None
) -> dict[Centering | None, Tensor] | None:
    """<C K_a C, C K_b C>_F of q kernels for each centering, if there is a cheaper order than tiles.

    Args:
        batch: The kernels.
        centerings: The centerings; None is for the kernels as they are.
        precision: "highest", "high" or "medium".
        samples: The samples that the kernels are over; None for those of the batch.

    Returns:
        float64 [q, q] on the kernels' device; None where tiles cost less, or a centered kernel is so small beside the
        kernel that only tiles have its digits.
    """
    samples = Samples(batch.n) if samples is None else samples
    shapes = [LayerShape.of(layer) for kernel in batch.kernels() for layer in kernel]
    order = order_of(samples.n, batch.o, shapes, by_output="per_output" in centerings)
    if order == "tiles":
        return None
    single = torch.promote_types(batch.dtype, torch.float32)
    if not products_are_in_float32(batch.backward[0].device):
        single = torch.float64
    if order == "parameters first":
        return parameters_first.inner_products(batch, centerings, single, samples)
    most = {single: _MOST_IN_FLOAT32[precision], torch.float64: _MOST_IN_FLOAT64}
    for dtype in most:
        found = outputs_first.inner_products(batch, centerings, dtype, samples)
        squares = torch.stack([found[one].diagonal() for one in centerings])
        if bool((found[None].diagonal() <= most[dtype] * squares).all() | ~squares.isfinite().all()):
            return found
    return None
