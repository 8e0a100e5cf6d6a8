"""The moments of several kernels on CUDA: what is small takes as many launches for many kernels as for one.

Networks on small data spend most of a measurement in launching operations. Scales, means and sums of all kernels come
together. Products with vectors, diagonals and tiles take launches for each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ahkernels.ops import plain
from ahkernels.ops.batch import KernelBatch
from ahkernels.ops.cuda.panels import panels
from ahkernels.ops.cuda.scaled_kernel import ScaledKernel
from ahkernels.ops.cuda.tiles import PANEL_SAMPLES
from ahkernels.ops.moments import Moments
from ahkernels.ops.scaling import Scales, scales_of_layers


def tangent_moments(batch: KernelBatch, v: Tensor, precision: str, per_output: bool = False) -> tuple[Moments, ...]:
    """See `ahkernels.ops.tangent_moments`; together where kernels of single layers are centered as a whole."""
    together = batch.kernel_count == len(batch.forward) and not any(batch.by_jacobian)
    if per_output or not together or batch.dtype == torch.float64:
        return plain.tangent_moments(batch, v, precision, per_output)
    layers = [layer for (layer,) in batch.kernels()]
    scales = scales_of_layers(layers)
    of_each = list(zip(layers, scales.of_each(), strict=True))

    def squared_norms(row_means: Tensor) -> Tensor:
        means = _means_of_tiles(row_means, scales)
        squares = []
        for (layer, of_layer), of_tiles in zip(of_each, means, strict=True):  # no more than one is packed at a time
            kernel = ScaledKernel.of([layer], precision, (of_layer.forward, of_layer.backward, of_layer.kernel))
            squares.append(kernel.squared_norm(of_tiles, panels([layer], precision)))
        return torch.stack(squares) / scales.forward**4 / scales.backward**4

    columns = plain.ones_and_labels(v)
    scaled, of_v = plain.scaled_vectors(columns)
    products = torch.stack([plain.scaled_product(*one, scaled) for one in of_each])  # [q, n, o, 2]
    products = products / scales.kernel[:, None, None, None] / of_v
    return (plain.moments_of_products(products, columns, squared_norms, plain.traces(batch)),)


def _means_of_tiles(row_means: Tensor, scales: Scales) -> list[Tensor]:
    """Numbers [2, rows] for `tiles.tangent_tiles` of each kernel, with zeros to whole tiles, from means [q, n, o]."""
    scaled = row_means.flatten(1) * (scales.forward * scales.backward).square_()[:, None]
    both = torch.stack((scaled - scaled.mean(1, keepdim=True), scaled), 1).float()
    return list(torch.nn.functional.pad(both, (0, -both.shape[2] % PANEL_SAMPLES)).unbind())
