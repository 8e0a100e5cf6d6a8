"""The ops on CUDA, from kernels for two things: a factor as a sum of bf16 parts, and all that is done tile by tile.

Tensor cores multiply bf16 numbers. A product of fp32 numbers is a sum of such products: of 3 parts with 24 bits at
"highest" (6 products), of 2 parts at "high" (3 products). "medium" takes the numbers rounded to bf16. Factors that are
bf16 already need one part at any precision.

Where near-constant kernels are of one layer with one position, the means leave their factors first, and tiles hold what
is left (`ahkernels.ops.near_constant`).

Everything else is torch's: the forward Gram, which is tiny beside K, by panels of samples (see `gram_dtype`), and
kernels of float64 numbers and other near-constant ones, which take float64 products (see `ahkernels.ops.plain`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor

from ahkernels.ops import near_constant, plain
from ahkernels.ops.batch import KernelBatch, Layer
from ahkernels.ops.build import TILING
from ahkernels.ops.near_constant import NearConstant, TileOffsets
from ahkernels.ops.scaling import largest_magnitudes, power_of_two, scale_of_largest, scales_of, to_one
from ahkernels.precision import products_are_in_float32

TILE = TILING["cuda_tile"]
# A panel has a multiple of so many samples, and so whole tiles of K at any number of outputs.
PANEL_SAMPLES = TILE
# For a panel of the forward Gram, and for rows of K where two kernels are compared.
PANEL_BYTES = 256 << 20
# Of a row of K and an output, in what tiles of near-constant kernels read: offsets of 8 bytes have 32 bits.
MOST_PAIRS = 1 << 29
PARTS = {"highest": 3, "high": 2, "medium": 1}
# A sum of so many products in fp32 keeps the digits of two bf16 parts: see `gram_dtype`.
LONGEST_FLOAT32_SUM = 1 << 14


def gram_dtype(layer: Layer, precision: str) -> torch.dtype:
    """What the forward Gram P is computed in. An error of P is an error of every entry of K.

    A product of d fp32 numbers is off by about sqrt(d) 2^-24 of the norms of its two rows, and by d 2^-24 at most.
    "medium" rounds the backward factor to 2^-9, beside which that does not count, nor 2^-11 where torch may multiply
    in TF32. "high" keeps 2^-17, which fp32 keeps up to d = 2^14, and TF32 does not. "highest" asks for fp32's own
    2^-24, and leaves it to the backward factor alone.
    """
    if precision == "medium":
        return torch.float32
    keeps = layer.forward.shape[2] <= LONGEST_FLOAT32_SUM and products_are_in_float32(layer.forward.device)
    return torch.float32 if precision == "high" and keeps else torch.float64


def pack_parts(factor: Tensor, scale: Tensor, count: int) -> Tensor:
    """A factor [n, s, o, m] times scale as bf16 parts [count, s, rows, k]: row x*o + i, and zeros up to whole tiles."""
    result: Tensor = torch.ops.ahkernels.pack_parts(factor, scale, count)
    return result


def tangent_tiles(
    parts: Tensor, p: Tensor, means: Tensor, unscale: Tensor, n: int, o: int, sample: int, result: str, entries: Tensor
) -> Tensor:
    """Computes the entries of K, less means, in the rows of the samples that p begins at, and does what `result` says.

    Args:
        parts: Backward factor from `pack_parts`.
        p: Forward Gram of samples from `sample` on, float32 [s, s, samples of the rows, n - sample].
        means: [2, rows], subtracted from rows and from columns, float32; empty for "matrix".
        unscale: Two float64 numbers that "matrix" multiplies entries by; else empty.
        n: Samples.
        o: Outputs.
        sample: A multiple of PANEL_SAMPLES.
        result: "squares" and "products" (with `entries`): sums over the rows and all columns, counting what lies
            below the diagonal of K for these rows' columns too; "matrix": writes K and its mirror image to `entries`
            [n*o, n*o]; "rows": writes the tiles on and above the diagonal to `entries` [rows of the panel, n*o].
        entries: Read or written; empty for "squares".

    Returns:
        float64 parts of the sum, empty for "matrix" and "rows".
    """
    sums: Tensor = torch.ops.ahkernels.tangent_tiles(parts, p, means, unscale, n, o, sample, result, entries)
    return sums


def deviation_tiles(
    parts: Tensor, gram: Tensor, offsets: TileOffsets, n: int, o: int, sample: int, result: str, entries: Tensor
) -> Tensor:
    """As `tangent_tiles`, for T of a near-constant kernel in the unit of its offsets; without "matrix".

    Args:
        parts: Deviations of the backward factor from `pack_parts`.
        gram: Gram of the deviations of the forward factor, like p there.
        offsets: What goes into entries beside both.
        n: As there, and so is what follows.
        o: Outputs.
        sample: A multiple of PANEL_SAMPLES.
        result: "squares", "products" or "rows".
        entries: Read or written; empty for "squares".

    Returns:
        float64 parts of the sum, empty for "rows".
    """
    numbers = offsets.p, offsets.pairs, offsets.factors
    sums: Tensor = torch.ops.ahkernels.deviation_tiles(parts, gram, *numbers, n, o, sample, result, entries)
    return sums


@dataclass(frozen=True)
class ScaledKernel:
    """The kernel of one layer times forward_scale^2 backward_scale^2, as the tiles compute it.

    Attributes:
        forward: Scaled forward factor [s, n, d], in the dtype that its Gram is computed in.
        bias: b, scaled, a scalar of that dtype on the device.
        parts: Backward factor from `pack_parts`.
        forward_scale: A power of two on the device.
        backward_scale: Likewise.
        o: Outputs.
    """

    forward: Tensor
    bias: Tensor
    parts: Tensor
    forward_scale: Tensor
    backward_scale: Tensor
    o: int

    @classmethod
    def of(cls, layer: Layer, precision: str, scales: tuple[Tensor, Tensor] | None = None) -> ScaledKernel:
        """Scales and packs the factors of a layer; nothing waits for the device."""
        forward, backward, bias, _ = layer
        forward_scale, backward_scale = scales or (power_of_two(forward, bias), power_of_two(backward))
        count = 1 if backward.dtype == torch.bfloat16 else PARTS[precision]
        dtype = gram_dtype(layer, precision)
        return cls(
            forward.transpose(0, 1).to(dtype) * forward_scale.to(dtype),
            (bias * forward_scale**2).to(dtype),
            pack_parts(backward, backward_scale, count),
            forward_scale,
            backward_scale,
            backward.shape[2],
        )

    @property
    def n(self) -> int:
        """Samples."""
        return self.forward.shape[1]

    def squared_norm(self, means: Tensor) -> Tensor:
        """That of the kernel less means of its rows and columns, which are as for `tangent_tiles`."""
        panels = _panels(self.n, 12 * len(self.forward) ** 2 * self.n)
        return reduce(torch.add, [self.tiles(rows, "squares", means=means).sum() for rows in panels])

    def forward_gram(self, rows: slice) -> Tensor:
        """P between the samples in rows and those from there on, float32 [s, s, rows, n - rows.start].

        One product of matrices: a batched one over pairs of positions would copy both operands for each pair.
        """
        a, others = self.forward[:, rows], self.forward[:, rows.start :]
        s, c, count = *a.shape[:2], others.shape[1]
        # A vector of biases is added within the product, unlike a scalar.
        product = torch.addmm(self.bias.expand(s * count).contiguous(), a.flatten(0, 1), others.flatten(0, 1).T)
        by_positions = product.view(s, c, s, count).transpose(1, 2)
        return by_positions.to(torch.float32, memory_format=torch.contiguous_format).contiguous()

    def means(self, row_means: Tensor) -> Tensor:
        """Numbers [2, rows] that centering subtracts from rows and from columns; the former include the mean of all."""
        scaled = (row_means * self.forward_scale**2 * self.backward_scale**2).flatten()
        both = torch.stack((scaled - scaled.mean(), scaled)).float()
        return torch.nn.functional.pad(both, (0, self.parts.shape[2] - both.shape[1]))

    def tiles(
        self,
        rows: slice,
        result: str,
        *,
        means: Tensor | None = None,
        unscale: Tensor | None = None,
        entries: Tensor | None = None,
    ) -> Tensor:
        """Calls `tangent_tiles` for the samples in rows; arguments are as there."""
        p = self.forward_gram(rows)
        empty = p.new_empty(0)
        return tangent_tiles(
            self.parts,
            p,
            empty if means is None else means,
            empty if unscale is None else unscale,
            self.n,
            self.o,
            rows.start,
            result,
            empty if entries is None else entries,
        )


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
        scaled = ScaledKernel.of(numbers.parts, precision, (scales[0], scales[1]))
        sizes = (1 / scales).masked_fill(largest == 0, 0.0)  # zeros are nothing at any scale
        return cls(numbers, scaled, TileOffsets.of(numbers, sizes, scaled.parts.shape[2]))

    def tiles(self, rows: slice, result: str, *, entries: Tensor | None = None) -> Tensor:
        """Calls `deviation_tiles` for the samples in rows; arguments are as there."""
        scaled, gram = self.scaled, self.scaled.forward_gram(rows)
        entries = gram.new_empty(0) if entries is None else entries
        return deviation_tiles(scaled.parts, gram, self.offsets, scaled.n, scaled.o, rows.start, result, entries)


class SumOfLayers:
    """A kernel of several layers, or of layers by their Jacobian.

    Panels of rows of it are sums, to which one part after the other is added.

    Args:
        layers: The kernel's layers.
        precision: "highest", "high" or "medium".

    Attributes:
        scale: Power of two that panels are multiplied by.
    """

    def __init__(self, layers: Sequence[Layer], precision: str) -> None:
        self.layers = layers
        self.precision = precision
        self.scale = scale_of_largest([scales_of(one.forward, one.backward, one.bias)[2] for one in layers])

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of the forward Grams at all pairs of positions, for each sample of a panel."""
        by_pairs = (layer for layer in self.layers if not layer.by_jacobian)
        return max((_gram_bytes(layer, self.precision) for layer in by_pairs), default=0)

    def panel(self, rows: slice) -> Tensor:
        """As `plain.ScaledLayer.panel`, times scale."""
        (n, _, o, _), c = self.layers[0].backward.shape, rows.stop - rows.start
        total = torch.zeros(c * o, n * o, dtype=torch.float32, device=self.layers[0].backward.device)
        for part in self._parts():
            # The tiles below the diagonal are not written.
            entries = torch.zeros_like(total)
            means = entries.new_zeros(2, part.parts.shape[2])
            part.tiles(rows, "rows", means=means, entries=entries)
            unscale = (self.scale / part.forward_scale**2) / part.backward_scale**2
            total.addcmul_(entries, unscale.clamp(max=1).float())  # more than 1 for zeros alone
        panel = total.view(c, o, n, o)[:, :, rows.start :]
        panel[:, :, :c] = plain.mirrored(panel[:, :, :c])
        return panel

    def _parts(self) -> Iterator[ScaledKernel]:
        for layer in self.layers:
            if not layer.by_jacobian:
                yield ScaledKernel.of(layer, self.precision)
                continue
            a, g = layer.forward, layer.backward
            for j in plain.jacobian_slices(a.float(), g.float(), layer.bias, plain.jacobian_step(a, g)):
                yield ScaledKernel.of(Layer(a.new_empty(len(a), 1, 0), j.unsqueeze(1), 1.0, False), self.precision)


def _gram_bytes(layer: Layer, precision: str) -> int:
    """Bytes of the forward Gram at all pairs of positions, for one sample of its rows.

    It is held twice where the tiles do not take the product as it is: in another dtype or order.
    """
    n, s, _ = layer.forward.shape
    dtype = gram_dtype(layer, precision)
    as_it_is = dtype == torch.float32 and s == 1
    return (dtype.itemsize + (0 if as_it_is else 4)) * s**2 * n


def _panels(n: int, bytes_per_sample: int) -> list[slice]:
    """Samples in steps of whole PANEL_SAMPLES within PANEL_BYTES."""
    step = max(1, PANEL_BYTES // bytes_per_sample // PANEL_SAMPLES) * PANEL_SAMPLES
    return [slice(begin, min(begin + step, n)) for begin in range(0, n, step)]


def _takes_plain(batch: KernelBatch, precision: str) -> bool:
    return batch.dtype == torch.float64 or plain.loses_digits(batch, "global", precision)


def _single_layers(batch: KernelBatch) -> list[Layer] | None:
    """The layer of each kernel, unless there is a sum of layers or a layer by its Jacobian."""
    if any(batch.by_jacobian) or len(batch.forward) != batch.kernel_count:
        return None
    return [layer for (layer,) in batch.kernels()]


def _deviation_kernels(batch: KernelBatch, precision: str) -> list[DeviationKernel] | None:
    """Near-constant kernels of one layer with one position each; None for others, float64 ones and too many pairs."""
    layers = _single_layers(batch)
    if batch.dtype == torch.float64 or layers is None or any(layer.backward.shape[1] > 1 for layer in layers):
        return None
    if -(-batch.n * batch.o // TILE) * TILE * batch.o >= MOST_PAIRS:
        return None
    return [DeviationKernel.of(layer, precision) for layer in layers]


def centered_inner_products(batch: KernelBatch, row_means: list[Tensor], precision: str) -> Tensor:
    """See `ahkernels.ops.centered_inner_products`."""
    if batch.near_constant("global") and (kernels := _deviation_kernels(batch, precision)) is not None:
        found = _products_of_deviations(kernels, precision)
        return near_constant.less_row_means(found, [kernel.numbers for kernel in kernels], row_means)
    if _takes_plain(batch, precision):
        return plain.centered_inner_products(batch, row_means, precision)
    layers = _single_layers(batch)
    if layers is None:
        return _inner_products_of_sums(batch, row_means, precision)
    return _inner_products_of_layers(layers, row_means, precision)


def per_output_inner_products(batch: KernelBatch, precision: str) -> Tensor:
    """See `ahkernels.ops.per_output_inner_products`."""
    kernels = _deviation_kernels(batch, precision)
    if kernels is None:
        return plain.per_output_inner_products(batch, precision)
    found = _products_of_deviations(kernels, precision)
    return near_constant.per_output(found, [kernel.numbers for kernel in kernels])


def _inner_products_of_sums(batch: KernelBatch, row_means: list[Tensor], precision: str) -> Tensor:
    sums = [SumOfLayers(layers, precision) for layers in batch.kernels()]
    n, o = batch.n, batch.o
    held = 4 * (len(sums) + 3) * o * n * o + max(kernel.bytes_per_sample for kernel in sums)
    scales = [kernel.scale for kernel in sums]
    return plain.inner_products_of_panels(
        lambda rows: [kernel.panel(rows) for kernel in sums],
        _panels(n, held),
        plain.subtract_row_means(row_means, scales),
        scales,
    )


def _inner_products_of_layers(layers: Sequence[Layer], row_means: list[Tensor], precision: str) -> Tensor:
    kernels = [ScaledKernel.of(layer, precision) for layer in layers]
    tiles = [
        partial(kernel.tiles, means=kernel.means(of_rows)) for kernel, of_rows in zip(kernels, row_means, strict=True)
    ]
    total = _products_of_tiles(tiles, layers, precision)
    for i, kernel in enumerate(kernels):
        # One after the other: the product of extreme scales can leave the range of float64.
        for scale in (kernel.forward_scale, kernel.backward_scale):
            total[i] = total[i] / scale / scale
            total[:, i] = total[:, i] / scale / scale
    return total


def _products_of_deviations(kernels: Sequence[DeviationKernel], precision: str) -> Tensor:
    """Inner products [q, q] of T of near-constant kernels."""
    units = torch.stack([kernel.offsets.unit for kernel in kernels])
    layers = [kernel.numbers.parts for kernel in kernels]
    return _products_of_tiles([kernel.tiles for kernel in kernels], layers, precision) * units * units[:, None]


def _products_of_tiles(tiles: Sequence[Callable[..., Tensor]], layers: Sequence[Layer], precision: str) -> Tensor:
    """Inner products [q, q] of what the tiles hold of q kernels.

    Args:
        tiles: For each kernel, what takes rows, the name of a result and `entries`: see `ScaledKernel.tiles`.
        layers: The layer of each kernel.
        precision: "highest", "high" or "medium".
    """
    n, _, o, _ = layers[0].backward.shape
    total = torch.zeros(len(tiles), len(tiles), dtype=torch.float64, device=layers[0].backward.device)
    gram_bytes = max(_gram_bytes(layer, precision) for layer in layers)
    held = gram_bytes if len(tiles) == 1 else max(gram_bytes, 4 * o * n * o)
    for rows in _panels(n, held):
        for i, of_kernel in enumerate(tiles):
            total[i, i] += of_kernel(rows, "squares").sum()
            if i + 1 == len(tiles):
                break
            entries = total.new_empty((rows.stop - rows.start) * o, n * o, dtype=torch.float32)
            of_kernel(rows, "rows", entries=entries)
            for j in range(i + 1, len(tiles)):
                total[j, i] += tiles[j](rows, "products", entries=entries).sum()
    return total.tril() + total.tril(-1).T


def tangent_gram(batch: KernelBatch, precision: str) -> Tensor:
    """See `ahkernels.ops.tangent_gram`."""
    if _takes_plain(batch, precision):
        return plain.tangent_gram(batch, precision)
    n, o = batch.n, batch.o
    layers = _single_layers(batch)
    if layers is None:
        (layers,) = batch.kernels()
        total = SumOfLayers(layers, precision)
        rows = _panels(n, 20 * o * n * o + total.bytes_per_sample)
        return plain.gram_of_panels(total.panel, rows, n, o, total.scale)
    (layer,) = layers
    kernel = ScaledKernel.of(layer, precision)
    out = torch.empty(n * o, n * o, dtype=torch.float32, device=layer.forward.device)
    unscale = torch.stack((kernel.forward_scale, kernel.backward_scale)) ** -2.0
    for now in _panels(n, _gram_bytes(layer, precision)):
        kernel.tiles(now, "matrix", unscale=unscale, entries=out)
    return out
