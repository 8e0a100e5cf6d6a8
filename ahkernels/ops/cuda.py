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
from ahkernels.ops.scaling import largest_magnitudes, scales_of_layers, to_one, without_scales
from ahkernels.precision import products_are_in_float32

TILE = TILING["cuda_tile"]
# A panel has a multiple of so many samples, and so whole tiles of K at any number of outputs.
PANEL_SAMPLES = TILE
SLICE = 64  # numbers along k that a tensor copy brings (kKAlignment)
# For a panel of the forward Gram, and for rows of K where two kernels are compared.
PANEL_BYTES = 256 << 20
# Tiles of near-constant kernels take some 200 small operations more than float64 products of torch. With fewer
# multiply-adds than these, such products take less time even where float64 is slow.
LEAST_FOR_DEVIATIONS = 1 << 28
# Of a row of K and an output, in what tiles of near-constant kernels read: offsets of 8 bytes have 32 bits.
MOST_PAIRS = 1 << 29
PARTS = {"highest": 3, "high": 2, "medium": 1}
# The longest sums over k that are left to tensor cores (csrc/cuda/problem.cuh says what these lose): up to 7e-5 at
# "medium" and 9e-6 at "high", of which the emulator finds 5e-6 and 3e-7. Factors are rounded by 2e-3 and 8e-6 there.
STRAIGHT = {"highest": 0, "high": 128, "medium": 1024}
# A sum of layers has its tiles made in one pass if its layers are not more than these, its Jacobians have no more bytes
# in float32 and parts, and its forward Grams no more for a panel.
MOST_LAYERS = TILING["cuda_layers"]
JACOBIAN_BYTES = 512 << 20
GRAM_BYTES = 1 << 30
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


@dataclass(frozen=True)
class ScaledForward:
    """The forward factor of a layer times a power of two.

    Attributes:
        factor: Scaled [s, n, d], in the dtype that its Gram is computed in.
        bias: b, scaled as the Gram is, a scalar of that dtype on the device.
        scale: What the Gram of one of several layers is multiplied by beyond that: a power of two, no more than 1.
    """

    factor: Tensor
    bias: Tensor
    scale: Tensor | None

    @classmethod
    def of(cls, layer: Layer, precision: str, forward_scale: Tensor, scale: Tensor | None) -> ScaledForward:
        """Scales the factor of a layer."""
        dtype = gram_dtype(layer, precision)
        factor = layer.forward.transpose(0, 1).to(dtype) * forward_scale.to(dtype)
        bias = layer.bias * forward_scale**2
        if scale is None:
            return cls(factor, bias.to(dtype), None)
        return cls(factor, (bias * scale).to(dtype), scale.to(dtype))

    def gram(self, rows: slice) -> Tensor:
        """P between the samples in rows and those from there on, float32 [s * s, rows, n - rows.start].

        One product of matrices: a batched one over pairs of positions would copy both operands for each pair.
        """
        a, others = self.factor[:, rows], self.factor[:, rows.start :]
        a = a if self.scale is None else a * self.scale
        s, c, count = *a.shape[:2], others.shape[1]
        # A vector of biases is added within the product, unlike a scalar.
        product = torch.addmm(self.bias.expand(s * count).contiguous(), a.flatten(0, 1), others.flatten(0, 1).T)
        by_positions = product.view(s, c, s, count).transpose(1, 2)
        return by_positions.to(torch.float32, memory_format=torch.contiguous_format).contiguous().flatten(0, 1)


@dataclass(frozen=True)
class ScaledKernel:
    """The kernel of some layers times a power of two, as the tiles compute it.

    Attributes:
        forward: The forward factor of each layer.
        parts: Backward factors from `pack_parts` or `pack_slices`.
        layers: See `tangent_tiles`.
        scale: What the kernel is multiplied by, on the device.
        n: Samples.
        o: Outputs.
        straight: See `tangent_tiles`.
    """

    forward: list[ScaledForward]
    parts: Tensor
    layers: list[int]
    scale: Tensor
    n: int
    o: int
    straight: int

    @classmethod
    def of(
        cls, layers: Sequence[Layer], precision: str, scales: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> ScaledKernel:
        """Scales and packs the factors of some layers; nothing waits for the device.

        Args:
            layers: The kernel's layers.
            precision: "highest", "high" or "medium".
            scales: Where they are known, those of a single layer: of its factors, forward and backward, and of its
                kernel.
        """
        terms = [term for layer in layers for term in (_jacobian(layer) if layer.by_jacobian else [layer])]
        if scales:
            each, scale = [scales], scales[2]
        else:
            found = scales_of_layers(terms)
            each, scale = [(one.forward, one.backward, one.kernel) for one in found.of_each()], found.of_sum
        forward = [
            ScaledForward.of(term, precision, scale_a, scale / of_kernel if len(terms) > 1 else None)
            for term, (scale_a, _, of_kernel) in zip(terms, each, strict=True)
        ]
        count = max(1 if term.backward.dtype == torch.bfloat16 else PARTS[precision] for term in terms)
        n, s, o, _ = terms[0].backward.shape
        if len(terms) == 1 and s == 1:
            sizes, parts = [], pack_parts(terms[0].backward, each[0][1], count)
        else:
            sizes = [size for term in terms for size in (term.backward.shape[1], _slices(term))]
            blocks = sum(term.backward.shape[1] * _slices(term) for term in terms)
            rows = -(-n * o // PANEL_SAMPLES) * PANEL_SAMPLES
            parts = terms[0].backward.new_empty(count, blocks, rows, SLICE, dtype=torch.bfloat16)
            first = 0
            for term, (_, scale_g, _) in zip(terms, each, strict=True):
                pack_slices(term.backward, scale_g, parts, first)
                first += term.backward.shape[1] * _slices(term)
        return cls(forward, parts, sizes, scale, n, o, STRAIGHT[precision])

    def forward_gram(self, rows: slice) -> Tensor:
        """P of each layer, one after the other; see `tangent_tiles`."""
        if len(self.forward) == 1:
            return self.forward[0].gram(rows)
        return torch.cat([forward.gram(rows) for forward in self.forward])

    def squared_norm(self, means: Tensor, panels: Sequence[slice]) -> Tensor:
        """That of the kernel less means of its rows and columns, which are as for `tangent_tiles`."""
        return reduce(torch.add, [self.tiles(rows, "squares", means=means).sum() for rows in panels])

    def means(self, row_means: Tensor) -> Tensor:
        """Numbers [2, rows] that centering subtracts from rows and from columns; the former include the mean of all."""
        scaled = (row_means * self.scale).flatten()
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
            self.straight,
            self.layers,
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
        scaled = ScaledKernel.of([numbers.parts], precision, (scales[0], scales[1], scales.prod().square()))
        sizes = (1 / scales).masked_fill(largest == 0, 0.0)  # zeros are nothing at any scale
        return cls(numbers, scaled, TileOffsets.of(numbers, sizes, scaled.parts.shape[2]))

    def tiles(self, rows: slice, result: str, *, entries: Tensor | None = None) -> Tensor:
        """Calls `deviation_tiles` for the samples in rows; arguments are as there."""
        scaled, gram = self.scaled, self.scaled.forward_gram(rows)
        entries = gram.new_empty(0) if entries is None else entries
        where = scaled.n, scaled.o, rows.start
        return deviation_tiles(scaled.parts, gram, self.offsets, *where, scaled.straight, result, entries)


class SumOfLayers:
    """A kernel of several layers that is too large for one pass over its tiles.

    Panels of rows of it are sums, to which one group of layers after the other is added.

    Args:
        layers: The kernel's layers.
        precision: "highest", "high" or "medium".

    Attributes:
        scale: Power of two that panels are multiplied by.
    """

    def __init__(self, layers: Sequence[Layer], precision: str) -> None:
        self.layers = layers
        self.precision = precision
        self.packed = [ScaledKernel.of(group, precision) for group in _groups(layers)]
        self.scale = scales_of_layers(layers).of_sum

    def panel(self, rows: slice) -> Tensor:
        """As `plain.ScaledLayer.panel`, times scale."""
        (n, _, o, _), c = self.layers[0].backward.shape, rows.stop - rows.start
        total = torch.zeros(c * o, n * o, dtype=torch.float32, device=self.layers[0].backward.device)
        entries = torch.zeros_like(total)  # of which the tiles below the diagonal are never written
        for part in self._parts():
            part.tiles(rows, "rows", means=entries.new_zeros(2, part.parts.shape[2]), entries=entries)
            total.addcmul_(entries, (self.scale / part.scale).clamp(max=1).float())  # more than 1 for zeros alone
        panel = total.view(c, o, n, o)[:, :, rows.start :]
        panel[:, :, :c] = plain.mirrored(panel[:, :, :c])
        return panel

    def _parts(self) -> Iterator[ScaledKernel]:
        yield from self.packed
        for layer in self.layers:
            if layer.by_jacobian:
                for term in _jacobian(layer):
                    yield ScaledKernel.of([term], self.precision)


def _slices(layer: Layer) -> int:
    """Slices along k of each position; see `pack_slices`."""
    return max(1, -(-layer.backward.shape[3] // SLICE))


def _jacobian(layer: Layer) -> Iterator[Layer]:
    """The Jacobian of a layer in slices, each as the backward factor of a layer whose forward Gram is 1."""
    a, g = layer.forward, layer.backward
    for j in plain.jacobian_slices(a.float(), g.float(), layer.bias, plain.jacobian_step(a, g)):
        yield Layer(a.new_empty(len(a), 1, 0), j.unsqueeze(1), 1.0, False)


def _groups(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers that are contracted by pairs of positions, in groups that one pass can take."""
    groups: list[list[Layer]] = []
    room = 0
    for layer in layers:
        if layer.by_jacobian:
            continue
        needed = _panel_bytes(layer)
        if not groups or needed > room or len(groups[-1]) == MOST_LAYERS:
            groups.append([])
            room = GRAM_BYTES
        groups[-1].append(layer)
        room -= needed
    return groups


def _panel_bytes(layer: Layer) -> int:
    """Bytes of the forward Gram for a panel of as few samples as can be."""
    return 4 * PANEL_SAMPLES * len(layer.forward) * (1 if layer.by_jacobian else layer.forward.shape[1] ** 2)


def _fit_one_pass(layers: Sequence[Layer], precision: str) -> bool:
    """Whether the tiles of a kernel can be made in one pass."""
    if len(layers) == 1 and not layers[0].by_jacobian:
        return True
    terms, numbers, gram_bytes = 0, 0, 0
    for layer in layers:
        (n, _, o, m), d = layer.backward.shape, layer.forward.shape[2]
        of_layer = -(-m // plain.jacobian_step(layer.forward, layer.backward)) + 1 if layer.by_jacobian else 1
        terms += of_layer
        gram_bytes += of_layer * _panel_bytes(layer)
        numbers += n * o * m * (d + 1) if layer.by_jacobian else 0
    jacobian_bytes = (4 + 2 * PARTS[precision]) * numbers
    return terms <= MOST_LAYERS and jacobian_bytes <= JACOBIAN_BYTES and gram_bytes <= GRAM_BYTES


def _gram_bytes(layers: Sequence[Layer], precision: str) -> int:
    """Bytes of the forward Grams at all pairs of positions, for one sample of their rows.

    They are held twice where the tiles do not take the products as they are: in another dtype or order, or as those of
    one of several layers.
    """
    numbers = [len(layer.forward) * (1 if layer.by_jacobian else layer.forward.shape[1] ** 2) for layer in layers]
    dtypes = [gram_dtype(layer, precision) for layer in layers]
    if len(layers) > 1:
        return 8 * sum(numbers) + max(count * dtype.itemsize for count, dtype in zip(numbers, dtypes, strict=True))
    as_it_is = dtypes[0] == torch.float32 and numbers[0] == len(layers[0].forward)
    return (dtypes[0].itemsize + (0 if as_it_is else 4)) * numbers[0]


def _panels(n: int, bytes_per_sample: int) -> list[slice]:
    """Samples in steps of whole PANEL_SAMPLES within PANEL_BYTES."""
    step = max(1, PANEL_BYTES // bytes_per_sample // PANEL_SAMPLES) * PANEL_SAMPLES
    return [slice(begin, min(begin + step, n)) for begin in range(0, n, step)]


def panels(layers: Sequence[Layer], precision: str) -> list[slice]:
    """Panels of samples whose forward Grams fit."""
    return _panels(layers[0].backward.shape[0], _gram_bytes(layers, precision))


def _takes_plain(batch: KernelBatch, precision: str) -> bool:
    return batch.dtype == torch.float64 or plain.loses_digits(batch, "global", precision)


def _deviation_kernels(batch: KernelBatch, precision: str) -> list[DeviationKernel] | None:
    """Near-constant kernels of one layer with one position each; None for others, and where tiles do not serve."""
    one_layer = len(batch.forward) == batch.kernel_count and not any(batch.by_jacobian)
    if batch.dtype == torch.float64 or not one_layer or any(backward.shape[1] > 1 for backward in batch.backward):
        return None
    if -(-batch.n * batch.o // TILE) * TILE * batch.o >= MOST_PAIRS:
        return None
    if (batch.n * batch.o) ** 2 * sum(backward.shape[3] for backward in batch.backward) < LEAST_FOR_DEVIATIONS:
        return None
    return [DeviationKernel.of(layer, precision) for (layer,) in batch.kernels()]


def centered_inner_products(batch: KernelBatch, row_means: list[Tensor], precision: str) -> Tensor:
    """See `ahkernels.ops.centered_inner_products`."""
    if batch.near_constant("global") and (kernels := _deviation_kernels(batch, precision)) is not None:
        found = _products_of_deviations(kernels, precision)
        return near_constant.less_row_means(found, [kernel.numbers for kernel in kernels], row_means)
    if _takes_plain(batch, precision):
        return plain.centered_inner_products(batch, row_means, precision)
    if all(_fit_one_pass(layers, precision) for layers in batch.kernels()):
        return _inner_products_of_tiles(batch.kernels(), row_means, precision)
    return _inner_products_of_panels(batch.kernels(), row_means, precision)


def per_output_inner_products(batch: KernelBatch, precision: str) -> Tensor:
    """See `ahkernels.ops.per_output_inner_products`."""
    kernels = _deviation_kernels(batch, precision)
    if kernels is None:
        return plain.per_output_inner_products(batch, precision)
    found = _products_of_deviations(kernels, precision)
    return near_constant.per_output(found, [kernel.numbers for kernel in kernels])


def _inner_products_of_panels(layers: list[list[Layer]], row_means: list[Tensor], precision: str) -> Tensor:
    kernels = [SumOfLayers(of_kernel, precision) for of_kernel in layers]
    n, _, o, _ = layers[0][0].backward.shape
    held = 4 * (len(kernels) + 3) * o * n * o + max(_gram_bytes(of_kernel, precision) for of_kernel in layers)
    scales = [kernel.scale for kernel in kernels]
    return plain.inner_products_of_panels(
        lambda rows: [kernel.panel(rows) for kernel in kernels],
        _panels(n, held),
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
    gram_bytes = max(_gram_bytes(of_kernel, precision) for of_kernel in layers)
    held = gram_bytes if len(tiles) == 1 else max(gram_bytes, 4 * o * n * o)
    for rows in _panels(n, held):
        for i, of_kernel in enumerate(tiles):
            total[i, i].add_(of_kernel(rows, "squares").sum())
            if i + 1 == len(tiles):
                break
            entries = total.new_empty((rows.stop - rows.start) * o, n * o, dtype=torch.float32)
            of_kernel(rows, "rows", entries=entries)
            for j in range(i + 1, len(tiles)):
                total[j, i].add_(tiles[j](rows, "products", entries=entries).sum())
    return total.tril() + total.tril(-1).T


def tangent_gram(batch: KernelBatch, precision: str) -> Tensor:
    """See `ahkernels.ops.tangent_gram`."""
    if _takes_plain(batch, precision):
        return plain.tangent_gram(batch, precision)
    n, o = batch.n, batch.o
    (layers,) = batch.kernels()
    if not _fit_one_pass(layers, precision):
        total = SumOfLayers(layers, precision)
        rows = _panels(n, 20 * o * n * o + _gram_bytes(layers, precision))
        return plain.gram_of_panels(total.panel, rows, n, o, total.scale)
    kernel = ScaledKernel.of(layers, precision)
    out = torch.empty(n * o, n * o, dtype=torch.float32, device=layers[0].forward.device)
    unscale = torch.stack((1 / kernel.scale, torch.ones_like(kernel.scale)))
    for now in panels(layers, precision):
        kernel.tiles(now, "matrix", unscale=unscale, entries=out)
    return out
