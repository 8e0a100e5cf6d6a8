"""K as a matrix, by tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from ahkernels.ops import plain
from ahkernels.ops.batch import KernelBatch
from ahkernels.ops.cuda.inner_products import takes_plain
from ahkernels.ops.cuda.panels import fit_one_pass, gram_bytes_of, panels, panels_within
from ahkernels.ops.cuda.scaled_kernel import ScaledKernel
from ahkernels.ops.cuda.sum_of_layers import SumOfLayers


def tangent_gram(batch: KernelBatch, precision: str) -> Tensor:
    """See `ahkernels.ops.tangent_gram`."""
    if takes_plain(batch, precision):
        return plain.tangent_gram(batch, precision)
    n, o = batch.n, batch.o
    (layers,) = batch.kernels()
    if not fit_one_pass(layers, precision):
        total = SumOfLayers(layers, precision)
        rows = panels_within(n, 20 * o * n * o + gram_bytes_of(layers, precision))
        return plain.gram_of_panels(total.panel, rows, n, o, total.scale)
    kernel = ScaledKernel.of(layers, precision)
    out = torch.empty(n * o, n * o, dtype=torch.float32, device=layers[0].forward.device)
    unscale = torch.stack((1 / kernel.scale, torch.ones_like(kernel.scale)))
    for now in panels(layers, precision):
        kernel.tiles(now, "matrix", unscale=unscale, entries=out)
    return out
