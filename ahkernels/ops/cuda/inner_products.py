"""Inner products of centered kernels, by tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ahkernels.ops import near_constant, plain
from ahkernels.ops.batch import KernelBatch, Layer
from ahkernels.ops.cuda.deviation_kernel import DeviationKernel, deviation_kernels
from ahkernels.ops.cuda.panels import fit_one_pass, gram_bytes_of, panels_within
from ahkernels.ops.cuda.scaled_kernel import ScaledKernel
from ahkernels.ops.cuda.sum_of_layers import SumOfLayers
from ahkernels.ops.scaling import without_scales


def takes_plain(batch: KernelBatch, precision: str) -> bool:
    """Whether kernels take float64 products of torch: float64 numbers, and what tiles in float32 would lose."""
    return batch.dtype == torch.float64 or plain.loses_digits(batch, "global", precision)


def centered_inner_products(batch: KernelBatch, row_means: list[Tensor], precision: str) -> Tensor:
    """See `ahkernels.ops.centered_inner_products`."""
    if batch.near_constant("global") and (kernels := deviation_kernels(batch, precision)) is not None:
        found = _products_of_deviations(kernels, precision)
        return near_constant.less_row_means(found, [kernel.numbers for kernel in kernels], row_means)
    if takes_plain(batch, precision):
        return plain.centered_inner_products(batch, row_means, precision)
    if all(fit_one_pass(layers, precision) for layers in batch.kernels()):
        return _inner_products_of_tiles(batch.kernels(), row_means, precision)
    return _inner_products_of_panels(batch.kernels(), row_means, precision)


def per_output_inner_products(batch: KernelBatch, precision: str) -> Tensor:
    """See `ahkernels.ops.per_output_inner_products`."""
    kernels = deviation_kernels(batch, precision)
    if kernels is None:
        return plain.per_output_inner_products(batch, precision)
    found = _products_of_deviations(kernels, precision)
    return near_constant.per_output(found, [kernel.numbers for kernel in kernels])


def _inner_products_of_panels(layers: list[list[Layer]], row_means: list[Tensor], precision: str) -> Tensor:
    kernels = [SumOfLayers(of_kernel, precision) for of_kernel in layers]
    n, _, o, _ = layers[0][0].backward.shape
    held = 4 * (len(kernels) + 3) * o * n * o + max(gram_bytes_of(of_kernel, precision) for of_kernel in layers)
    scales = [kernel.scale for kernel in kernels]
    return plain.inner_products_of_panels(
        lambda rows: [kernel.panel(rows) for kernel in kernels],
        panels_within(n, held),
        plain.subtract_row_means(row_means, scales),
        scales,
    )


def _inner_products_of_tiles(layers: list[list[Layer]], row_means: list[Tensor], precision: str) -> Tensor:
    kernels = [ScaledKernel.of(of_kernel, precision) for of_kernel in layers]
    tiles = [
        partial(kernel.tiles, means=kernel.means(of_rows)) for kernel, of_rows in zip(kernels, row_means, strict=True)
    ]
    scales = torch.stack([kernel.scale for kernel in kernels])
    return without_scales(_products_of_tiles(tiles, layers, precision), scales)


def _products_of_deviations(kernels: Sequence[DeviationKernel], precision: str) -> Tensor:
    """Inner products [q, q] of T of near-constant kernels."""
    units = torch.stack([kernel.offsets.unit for kernel in kernels])
    layers = [[kernel.numbers.parts] for kernel in kernels]
    return _products_of_tiles([kernel.tiles for kernel in kernels], layers, precision) * units * units[:, None]


def _products_of_tiles(
    tiles: Sequence[Callable[..., Tensor]], layers: Sequence[Sequence[Layer]], precision: str
) -> Tensor:
    """Inner products [q, q] of what the tiles hold of q kernels.

    Args:
        tiles: For each kernel, what takes rows, the name of a result and `entries`: see `ScaledKernel.tiles`.
        layers: The layers of each kernel.
        precision: "highest", "high" or "medium".
    """
    first = layers[0][0].backward
    n, _, o, _ = first.shape
    total = torch.zeros(len(tiles), len(tiles), dtype=torch.float64, device=first.device)
    gram_bytes = max(gram_bytes_of(of_kernel, precision) for of_kernel in layers)
    held = gram_bytes if len(tiles) == 1 else max(gram_bytes, 4 * o * n * o)
    for rows in panels_within(n, held):
        for i, of_kernel in enumerate(tiles):
            total[i, i].add_(of_kernel(rows, "squares").sum())
            if i + 1 == len(tiles):
                break
            entries = total.new_empty((rows.stop - rows.start) * o, n * o, dtype=torch.float32)
            of_kernel(rows, "rows", entries=entries)
            for j in range(i + 1, len(tiles)):
                total[j, i].add_(tiles[j](rows, "products", entries=entries).sum())
    return total.tril() + total.tril(-1).T
