"""The ops in plain torch, chunked and centered as the kernels are: for devices without kernels.

Slower, with the same answer. Memory beyond the factors stays within a few times ``chunk_elements`` numbers at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ahkernels.centering import Centering
from ahkernels.ops.batch import KernelBatch, Layer
from ahkernels.ops.deviations import deviations
from ahkernels.ops.moments import Moments
from ahkernels.ops.scaling import Scales, finite, scales_of_layers, to_one, without_scales
from ahkernels.precision import products_in_float32


def chunk_elements(factor: Tensor) -> int:
    """Numbers at a time: for the caches of a processor, or enough to keep another device busy."""
    return 1 << 23 if factor.device.type == "cpu" else 1 << 26


def tile_dtype(factor: Tensor) -> torch.dtype:
    """The dtype of tiles and of a materialised K: float64 for float64 factors, else float32."""
    return torch.float64 if factor.dtype == torch.float64 else torch.float32


def loses_digits(batch: KernelBatch, centering: Centering, precision: str) -> bool:
    """Whether kernels may be so near constant that tiles in fp32 lose the digits `precision` asks for."""
    return batch.near_constant(centering) and precision != "medium"


class ScaledLayer(NamedTuple):
    """The factors of a layer times powers of two, and `scale`: what its kernel is multiplied by; see `Scales`."""

    forward: Tensor
    backward: Tensor
    bias: Tensor | float
    by_jacobian: bool
    scale: Tensor

    @classmethod
    def of(cls, layer: Layer, scales: Scales, precision: str) -> ScaledLayer:
        """Scales and rounds the factors."""
        forward, backward, bias, by_jacobian = layer
        return cls(
            _rounded(forward, scales.forward, precision),
            _rounded(backward, scales.backward, precision),
            bias * scales.forward_gram if bias else 0.0,
            by_jacobian,
            scales.kernel,
        )

    def panel(self, rows: slice) -> Tensor:
        """Entries between the samples in rows and those from there on, [rows, o, n - rows.start, o]."""
        return self.samples(rows).against(self.samples(slice(rows.start, None)))

    def samples(self, rows: slice) -> ScaledLayer:
        """The layer for some samples."""
        return self._replace(forward=self.forward[rows], backward=self.backward[rows])

    def against(self, others: ScaledLayer) -> Tensor:
        """Entries between these samples and others, given by factors of the same layer, [n, o, n', o']."""
        (n, s, o, _), (other_n, other_s, other_o, _) = self.backward.shape, others.backward.shape
        panel = self.backward.new_zeros(n, o, other_n, other_o)
        if self.by_jacobian:
            step = jacobian_step(others.forward, others.backward)
            for j, k in zip(self.jacobian_slices(step), others.jacobian_slices(step), strict=True):
                panel += (j.flatten(0, 1) @ k.flatten(0, 1).T).view(panel.shape)
            return panel
        for first in range(s):
            for second in range(other_s):
                p = self.forward[:, first] @ others.forward[:, second].T  # [n, n']
                p += (self.bias * others.bias) ** 0.5  # each at its own scale
                q = self.backward[:, first].flatten(0, 1) @ others.backward[:, second].flatten(0, 1).T
                panel += p[:, None, :, None] * q.view(panel.shape)
        return panel

    def jacobian_slices(self, step: int) -> Iterator[Tensor]:
        """See `jacobian_slices`."""
        return jacobian_slices(self.forward, self.backward, self.bias, step)


def scaled_layers(layers: Sequence[Layer], precision: str) -> list[ScaledLayer]:
    """Scales and rounds the factors of layers."""
    scales = scales_of_layers(layers).of_each()
    return [ScaledLayer.of(*one, precision) for one in zip(layers, scales, strict=True)]


def _rounded(factor: Tensor, scale: Tensor, precision: str) -> Tensor:
    numbers = factor.to(tile_dtype(factor)) * scale.to(tile_dtype(factor))
    if precision == "medium" and numbers.dtype == torch.float32:
        numbers = numbers.to(torch.bfloat16).to(torch.float32)
    return numbers


def jacobian_step(forward: Tensor, backward: Tensor) -> int:
    """Pre-activations in a slice of the parameters."""
    return max(1, chunk_elements(backward) // max(1, backward.shape[0] * backward.shape[2] * forward.shape[2]))


def jacobian_slices(forward: Tensor, backward: Tensor, bias: Tensor | float, step: int) -> Iterator[Tensor]:
    """J = sum_s g_s a_s^T [n, o, numbers] in slices of the weight; for a bias b, sqrt(b) sum_s g_s comes last."""
    m, d = backward.shape[3], forward.shape[2]
    for begin in range(0, m if d else 0, step):
        yield jacobian_of_weights(forward, backward[..., begin : begin + step])
    if isinstance(bias, Tensor) or bias:
        yield backward.sum(1) * bias**0.5


def jacobian_of_weights(forward: Tensor, backward: Tensor) -> Tensor:
    """sum_s g_s a_s^T [n, o, m d] of forward [n, s, d] and backward [n, s, o, m]."""
    return torch.einsum("xsom,xsd->xomd", backward, forward).flatten(2)


def sum_panel(layers: Sequence[ScaledLayer], scale: Tensor, rows: slice, columns: slice | None = None) -> Tensor:
    """`ScaledLayer.panel` of a kernel, or entries between two groups of samples, at the scale of its largest layer."""
    panel: Tensor | None = None
    for layer in layers:
        part = layer.panel(rows) if columns is None else layer.samples(rows).against(layer.samples(columns))
        if len(layers) > 1:
            part *= (scale / layer.scale).to(part.dtype)
        panel = part if panel is None else panel.add_(part)
    assert panel is not None
    return panel


def inner_products_of_panels(
    panels: Callable[[slice], list[Tensor]],
    rows: Sequence[slice],
    subtract: Callable[[int, Tensor, slice], None],
    scales: list[Tensor],
) -> Tensor:
    """Inner products of centered kernels from `panels` of all of them (see `ScaledLayer.panel`), times their scales.

    `subtract` takes the means out of a panel of one of them.
    """
    total = torch.zeros(len(scales), len(scales), dtype=torch.float64, device=scales[0].device)
    for now in rows:
        centered = panels(now)
        for index, panel in enumerate(centered):
            subtract(index, panel, now)
        for i, first in enumerate(centered):
            for j, second in enumerate(centered[: i + 1]):
                products = first * second  # past the samples in rows they stand for their mirror image too
                square = products[:, :, : len(products)].sum(dtype=torch.float64)
                total[i, j].add_(products.sum(dtype=torch.float64), alpha=2).sub_(square)
    return without_scales(total, torch.stack(scales))


def subtract_row_means(row_means: list[Tensor], scales: list[Tensor]) -> Callable[[int, Tensor, slice], None]:
    """The `subtract` of `inner_products_of_panels` for means [n, o] of each kernel's rows."""
    means = [mean * scale for mean, scale in zip(row_means, scales, strict=True)]

    def subtract(index: int, panel: Tensor, now: slice) -> None:
        mean = means[index]
        panel -= (mean[now] - mean.mean()).to(panel.dtype)[:, :, None, None]
        panel -= mean[now.start :].to(panel.dtype)[None, None]

    return subtract


def gram_of_panels(panel_of: Callable[[slice], Tensor], rows: Sequence[slice], n: int, o: int, scale: Tensor) -> Tensor:
    """K [n*o, n*o] from its panels times scale (see `ScaledLayer.panel`)."""
    k: Tensor | None = None
    for now in rows:
        panel = panel_of(now)
        if k is None:
            k = panel.new_empty(n, o, n, o)
        panel = panel.double() / scale
        k[now.start :, :, now] = panel.permute(2, 3, 0, 1).to(k.dtype)
        panel[:, :, : len(panel)] = mirrored(panel[:, :, : len(panel)])
        k[now, :, now.start :] = panel.to(k.dtype)
    assert k is not None
    return k.view(n * o, n * o)


def mirrored(corner: Tensor) -> Tensor:
    """The symmetric matrix [c, o, c, o] of what is on and above the diagonal."""
    square = corner.reshape(corner.shape[0] * corner.shape[1], -1)
    return (square.triu() + square.triu(1).T).view(corner.shape)


class ScaledKernels(NamedTuple):
    """The scaled layers of some kernels, the scale of each kernel, and the steps that panels are taken in."""

    kernels: list[list[ScaledLayer]]
    scales: list[Tensor]
    steps: list[slice]

    @classmethod
    def of(cls, batch: KernelBatch, precision: str) -> ScaledKernels:
        """Scales the layers of a batch."""
        of_all = [layer for kernel in batch.kernels() for layer in kernel]
        scales_of_all = scales_of_layers(of_all)
        layers = map(ScaledLayer.of, of_all, scales_of_all.of_each(), itertools.repeat(precision))
        kernels = [[next(layers) for _ in range(count)] for count in batch.layers]
        largest = torch.stack([some.amin() for some in torch.split(scales_of_all.kernel, batch.layers)])
        scales = list(finite(largest).unbind())
        return cls(kernels, scales, steps(batch.n, chunk_elements(batch.backward[0]), batch.n * batch.o**2))

    def panels(self, rows: slice) -> list[Tensor]:
        """`sum_panel` of each kernel."""
        return [sum_panel(*one, rows) for one in zip(self.kernels, self.scales, strict=True)]


def centered_inner_products(batch: KernelBatch, row_means: list[Tensor], precision: str) -> Tensor:
    """See `ahkernels.ops.centered_inner_products`."""
    scaled = ScaledKernels.of(batch.double() if loses_digits(batch, "global", precision) else batch, precision)
    return inner_products_of_panels(
        scaled.panels, scaled.steps, subtract_row_means(row_means, scaled.scales), scaled.scales
    )


def per_output_inner_products(batch: KernelBatch, precision: str) -> Tensor:
    """See `ahkernels.ops.per_output_inner_products`; in float64 but at "medium", in two passes over panels."""
    scaled = ScaledKernels.of(batch.double() if loses_digits(batch, "per_output", precision) else batch, precision)
    n, o = batch.n, batch.o
    # The means [n, o, o] of rows by the output of the columns.
    means = [scale.new_zeros(n, o, o, dtype=torch.float64) for scale in scaled.scales]
    for now in scaled.steps:
        for kernel, scale, of_kernel in zip(scaled.kernels, scaled.scales, means, strict=True):
            panel, count = sum_panel(kernel, scale, now).double(), now.stop - now.start
            of_kernel[now].add_(panel.sum(2) / n)
            of_kernel[now.stop :].add_(panel[:, :, count:].sum(0).permute(1, 2, 0) / n)

    def subtract(index: int, panel: Tensor, now: slice) -> None:
        mean = means[index]
        panel -= (mean[now] - mean.mean(0)).to(panel.dtype)[:, :, None]
        panel -= mean[now.start :].to(panel.dtype).permute(2, 0, 1)

    per_output = inner_products_of_panels(scaled.panels, scaled.steps, subtract, scaled.scales)
    unscaled = [mean / scale for mean, scale in zip(means, scaled.scales, strict=True)]
    return torch.stack((per_output + between_outputs([_mean_parts(mean) for mean in unscaled]), per_output))


def pair_inner_products(
    batch: KernelBatch,
    means: list[Tensor],
    precision: str,
    first_end: int,
    second_begin: int,
    forward_means: Sequence[Tensor] = (),
    backward_means: Sequence[Tensor] = (),
) -> Tensor:
    """See `ahkernels.ops.pair_inner_products`."""
    if forward_means:
        batch = deviations(batch, forward_means, backward_means)
    scaled = ScaledKernels.of(batch, precision)
    columns, o, twice = slice(second_begin, batch.n), batch.o, 2 if second_begin else 1
    given = [mean * scale for mean, scale in zip(means, scaled.scales, strict=True)]
    total = given[0].new_zeros(batch.kernel_count, batch.kernel_count)
    for rows in steps(first_end, chunk_elements(batch.backward[0]), (batch.n - second_begin) * o**2):
        panels = []
        for kernel, scale, mean in zip(scaled.kernels, scaled.scales, given, strict=True):
            panel = sum_panel(kernel, scale, rows, columns)  # [rows, o, columns, o]
            panel -= mean[rows].to(panel.dtype)[:, :, None]
            panel -= mean[columns].to(panel.dtype).permute(2, 0, 1)
            panels.append(panel)
        for i, first in enumerate(panels):
            for j, second in enumerate(panels):
                total[i, j].add_((first * second).sum(dtype=torch.float64), alpha=twice)
    of_kernels = torch.stack(scaled.scales)
    return total / of_kernels[:, None] / of_kernels


def _mean_parts(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Z and m of `between_outputs` from the means [n, o, o] of rows by output."""
    block = mean.mean(0)
    return mean - block, block


def between_outputs(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The inner products [q, q] of kernels centered as a whole, less those of the same centered per output.

    2n <Z_a B, Z_b B> + n^2 <B m_a B, B m_b B> with B = I_o - 11^T/o and, of the means of a kernel's rows by output, m
    [o, o] their mean over the samples and Z [n, o, o] what they differ from it.
    """
    deviations, blocks = [], []
    for deviation, block in parts:
        deviations.append(deviation - deviation.mean(2, keepdim=True))
        blocks.append(block - block.mean(0) - block.mean(1, keepdim=True) + block.mean())
    n, count = len(deviations[0]), len(parts)
    found = blocks[0].new_empty(count, count)
    for i in range(count):
        for j in range(count):
            found[i, j] = 2 * n * (deviations[i] * deviations[j]).sum() + n**2 * (blocks[i] * blocks[j]).sum()
    return found


def tangent_gram(batch: KernelBatch, precision: str) -> Tensor:
    """See `ahkernels.ops.tangent_gram`."""
    scaled = ScaledKernels.of(batch, precision)
    ((kernel,), (scale,)) = scaled.kernels, scaled.scales
    return gram_of_panels(lambda now: sum_panel(kernel, scale, now), scaled.steps, batch.n, batch.o, scale)


def tangent_gram_out(batch: KernelBatch, precision: str, out: Tensor) -> None:
    """See `ahkernels.ops.tangent_gram`: K by the device's own op, copied to `out`."""
    batch = batch.double() if out.dtype == torch.float64 else batch
    out.copy_(torch.ops.ahkernels.tangent_gram(*batch, precision))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """The sum of new tensors, one after the other."""
    first, *others = parts
    for part in others:
        first += part
    return first


def _only_kernel(batch: KernelBatch) -> list[Layer]:
    (layers,) = batch.kernels()
    return layers


def tangent_diagonal(batch: KernelBatch) -> Tensor:
    """See `ahkernels.ops.tangent_diagonal`."""
    return _sum(map(_diagonal, _only_kernel(batch)))


def _diagonal(layer: Layer) -> Tensor:
    forward, backward, bias, by_jacobian = layer
    diagonal = forward.new_empty(backward.shape[0], backward.shape[2], dtype=torch.float64)
    s, o, m = backward.shape[1:]
    for rows in steps(len(backward), chunk_elements(backward), s * max(o * m, forward.shape[2], s)):
        if s == 1 and not by_jacobian:  # (|a|^2 + b) |g|^2
            both = (torch.linalg.vector_norm(one[rows, 0], dim=-1, dtype=torch.float64) for one in (forward, backward))
            of_a, of_g = (norms.square_() for norms in both)
            diagonal[rows] = of_g.mul_(of_a.add_(bias)[:, None])
            continue
        a, g = forward[rows].double(), backward[rows].double()
        if by_jacobian:
            diagonal[rows] = 0
            for j in jacobian_slices(a, g, bias, jacobian_step(a, g)):
                diagonal[rows].add_(j.square().sum(2))
            continue
        p = a @ a.mT + bias  # [rows, s, s]
        g = g.transpose(1, 2)  # [rows, o, s, m]
        diagonal[rows] = (p[:, None] * (g @ g.mT)).sum((2, 3))
    return diagonal


def tangent_product(batch: KernelBatch, v: Tensor, fp32: bool = False) -> Tensor:
    """See `ahkernels.ops.tangent_product`."""
    if not fp32 or batch.dtype == torch.float64:
        return tangent_cross_product(batch, batch, v)
    return _product_in_float32(_only_kernel(batch), v)


def _product_in_float32(layers: Sequence[Layer], v: Tensor) -> Tensor:
    scaled, of_v = scaled_vectors(v)
    scales = scales_of_layers(layers).of_each()
    products = (scaled_product(*one, scaled).div_(one[1].kernel) for one in zip(layers, scales, strict=True))
    return _sum(products).div_(of_v)


def scaled_vectors(v: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors [n, o, columns] in float32 times powers of two that bring each near one, and these powers [columns]."""
    of_v = to_one(v.abs().amax((0, 1)), most=1000)
    return (v * of_v).float(), of_v


def scaled_product(layer: Layer, scales: Scales, v: Tensor) -> Tensor:
    """K v of one layer times the scale of its kernel, with products in float32 that are added up in float64.

    Args:
        layer: The layer.
        scales: Those of the layer, by which its factors are multiplied.
        v: From `scaled_vectors`.
    """
    factors = ThinFactors.in_float32(layer, scales)
    with products_in_float32(v.device):
        return _product(factors, factors, v)


def tangent_cross_product(rows: KernelBatch, columns: KernelBatch, v: Tensor) -> Tensor:
    """See `ahkernels.ops.tangent_cross_product`."""
    layers = zip(_only_kernel(rows), _only_kernel(columns), strict=True)
    return _sum(_product(ThinFactors.of(row), ThinFactors.of(column), v) for row, column in layers)


class ThinFactors(NamedTuple):
    """The factors of a layer as products with few vectors take them chunk by chunk, in float64 or scaled in float32.

    Attributes:
        forward: The forward factor as it is.
        backward: Likewise.
        bias: b, times the square of the scale of the forward factor.
        scales: The powers of two for float32; None for float64.
    """

    forward: Tensor
    backward: Tensor
    bias: Tensor | float
    scales: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, layer: Layer) -> ThinFactors:
        """For products in float64."""
        return cls(layer.forward, layer.backward, layer.bias)

    @classmethod
    def in_float32(cls, layer: Layer, scales: Scales) -> ThinFactors:
        """For products in float32."""
        bias = layer.bias * scales.forward_gram if layer.bias else 0.0
        return cls(layer.forward, layer.backward, bias, (scales.forward, scales.backward))

    def a(self, samples: slice) -> Tensor:
        """The forward factor of some samples."""
        factor = self.forward[samples]
        return factor.double() if self.scales is None else factor.float() * self.scales[0]

    def g(self, samples: slice, pre_activations: slice = slice(None), now: slice = slice(None)) -> Tensor:
        """The backward factor of some samples, and of some among them, at some pre-activations."""
        factor = self.backward[samples][..., pre_activations][now]
        return factor.double() if self.scales is None else factor.float() * self.scales[1]


def _product(row: ThinFactors, column: ThinFactors, v: Tensor) -> Tensor:
    numbers = chunk_elements(row.backward)
    through_samples = _fewer_flops_through_samples(row.forward, column.forward, row.backward.shape[3], passes=2)
    route = _entries_through_samples if through_samples else _entries_through_parameters
    out = v.new_zeros(*row.backward.shape[::2], v.shape[2], dtype=torch.float64)
    for samples, pre_activations, t in route(row, column, v, numbers):
        sums = out[samples]
        for now in steps(len(sums), numbers, row.backward[0, ..., pre_activations].numel()):
            sums[now].add_(torch.einsum("xsim,xsvm->xiv", row.g(samples, pre_activations, now), t[now]))
    return out


def tangent_quadratic(batch: KernelBatch, v: Tensor) -> Tensor:
    """See `ahkernels.ops.tangent_quadratic`."""
    return _sum(_quadratic(ThinFactors.of(layer), v) for layer in _only_kernel(batch))


def _quadratic(layer: ThinFactors, v: Tensor) -> Tensor:
    forward, backward, bias, _ = layer
    forms = v.new_zeros(v.shape[2])
    numbers = chunk_elements(backward)
    if _fewer_flops_through_samples(forward, forward, backward.shape[3], passes=1):
        for rows, pre_activations, t in _entries_through_samples(layer, layer, v, numbers):
            weights = v[rows]
            for now in steps(len(weights), numbers, backward[0, ..., pre_activations].numel()):
                h = torch.einsum("xsim,xiv->xsvm", layer.g(rows, pre_activations, now), weights[now])
                forms += (h * t[now]).sum((0, 1, 3))
        return forms
    for _, weights, sums in weight_gradients(layer, v, numbers):
        forms += weights.square().sum((1, 2)) + bias * sums.square().sum(1)
    return forms


def tangent_row_sums(batch: KernelBatch) -> Tensor:
    """See `ahkernels.ops.tangent_row_sums`."""
    ones = torch.ones(batch.n, batch.o, 1, dtype=torch.float64, device=batch.backward[0].device)
    return tangent_product(batch, ones, not batch.near_constant("global"))[..., 0]


def tangent_moments(batch: KernelBatch, v: Tensor, precision: str, per_output: bool = False) -> tuple[Moments, ...]:
    """See `ahkernels.ops.tangent_moments`."""
    return _moments_of_both_centerings(batch, v, precision) if per_output else (_moments(batch, v, precision),)


def _moments(batch: KernelBatch, v: Tensor, precision: str) -> Moments:
    """Global centering: inner products and sums from products, squared norms from panels."""
    ops = torch.ops.ahkernels  # the device's own, where it has some

    def squared_norms(means: Tensor) -> Tensor:
        pairs = zip(batch.split(), means, strict=True)
        return torch.cat([ops.centered_inner_products(*kernel, [of_rows], precision)[0] for kernel, of_rows in pairs])

    columns = ones_and_labels(v)
    products = torch.stack([ops.tangent_product(*kernel, columns, True) for kernel in batch.split()])
    return moments_of_products(products, columns, squared_norms, traces(batch))


def ones_and_labels(v: Tensor) -> Tensor:
    """Ones and the centered labels v [n, o, 1] side by side."""
    return torch.cat((torch.ones_like(v), v - v.mean()), 2)


def moments_of_products(
    products: Tensor, columns: Tensor, squared_norms: Callable[[Tensor], Tensor], of_diagonals: Tensor
) -> Moments:
    """The moments of q kernels over several outputs, centered as a whole.

    Args:
        products: K 1 and K v of each kernel, [q, n, o, 2].
        columns: From `ones_and_labels`.
        squared_norms: Gives those of the centered kernels [q] from the means of their rows [q, n, o]. Errors of means
            enter them by their square alone, since the entries of a centered row add up to zero: the rounding of
            float32 is enough.
        of_diagonals: The traces of the kernels [q].
    """
    forms = (products * columns[..., 1:]).sum((1, 2))  # of ones and labels with the labels
    row_means = products[..., 0] / columns[..., 0].numel()
    return Moments(forms[:, 1], squared_norms(row_means), of_diagonals, products[..., 0].sum((1, 2)))


def _moments_of_both_centerings(batch: KernelBatch, v: Tensor, precision: str) -> tuple[Moments, Moments]:
    """Both centerings: inner products and sums from quadratic forms, squared norms from panels."""
    ops = torch.ops.ahkernels  # the device's own, where it has some
    n, o = v.shape[:2]
    v = v - v.mean()
    blocks = torch.eye(o, dtype=v.dtype, device=v.device).expand(n, o, o)  # a column of ones at each output
    columns = torch.cat((v, v - v.mean(0), torch.ones_like(v), blocks), 2)
    forms = torch.stack([ops.tangent_quadratic(*kernel, columns) for kernel in batch.split()])  # [q, 3 + o]
    squares = torch.cat([ops.per_output_inner_products(*kernel, precision)[:, 0] for kernel in batch.split()], 1)
    of_diagonals = traces(batch)
    return (
        Moments(forms[:, 0], squares[0], of_diagonals, forms[:, 2]),
        Moments(forms[:, 1], squares[1], of_diagonals, forms[:, 3:].sum(1)),
    )


def traces(batch: KernelBatch) -> Tensor:
    """Those of q kernels [q]."""
    diagonals = [torch.ops.ahkernels.tangent_diagonal(*kernel) for kernel in batch.split()]
    return torch.stack(diagonals).sum((1, 2))


def steps(count: int, numbers: int, numbers_of_one: int) -> list[slice]:
    """Slices over `count` things, of no more than `numbers` numbers each unless a single thing has more."""
    step = max(1, numbers // max(1, numbers_of_one))
    return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]


def _fewer_flops_through_samples(forward: Tensor, other_forward: Tensor, m: int, passes: int) -> bool:
    """Whether g . (P . (g^T v)) takes fewer flops than g . ((g^T v) a^T . a), which passes over m d weights.

    For equal sample sets and two passes it does where n s < 2 m d / (m + d).
    """
    d = forward.shape[2]
    rows, columns = forward.shape[0] * forward.shape[1], other_forward.shape[0] * other_forward.shape[1]
    return rows * columns * (d + m) <= (columns + (passes - 1) * rows) * m * d


def _entries_through_samples(
    row: ThinFactors, column: ThinFactors, v: Tensor, numbers: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Sums t of (<a, a'> + b) sum_i v_i g^i' over the other samples and positions, through the forward Gram P.

    Yields slices of the samples and of the pre-activations, and t [samples, s, columns, pre-activations] there. P and t
    have no more than `numbers` numbers each, unless a single sample has more.
    """
    (n, s, d), (others, other_s, o, m), columns = row.forward.shape, column.backward.shape, v.shape[2]
    for rows in steps(n, numbers, s * max(others * other_s, d)):
        a = row.a(rows).flatten(0, 1)  # [rows * s, d]
        p = a.new_empty(len(a), others * other_s)
        for now in steps(others, numbers, other_s * d):
            columns_now = slice(now.start * other_s, now.stop * other_s)
            torch.mm(a, column.a(now).flatten(0, 1).T, out=p[:, columns_now])
        p += row.bias
        for pre_activations in steps(m, numbers, max(len(a), s) * columns):
            width = pre_activations.stop - pre_activations.start
            t = a.new_zeros(len(a), columns * width)
            for now in steps(others, numbers, other_s * max(o, columns) * width):
                h = torch.einsum("xsim,xiv->xsvm", column.g(now, pre_activations), v[now])
                t.addmm_(p[:, now.start * other_s : now.stop * other_s], h.flatten(0, 1).flatten(1))
            yield rows, pre_activations, t.view(-1, s, columns, width)


def _entries_through_parameters(
    row: ThinFactors, column: ThinFactors, v: Tensor, numbers: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The same as `_entries_through_samples`, but as M_v a + b sum h."""
    n, s, d = row.forward.shape
    for pre_activations, weights, sums in weight_gradients(column, v, numbers):
        columns, width, _ = weights.shape
        weights, sums = weights.to(v.dtype), sums.to(v.dtype)
        for rows in steps(n, numbers, s * max(d, columns * width)):
            t = torch.einsum("vmd,xsd->xsvm", weights, row.a(rows))
            yield rows, pre_activations, t + row.bias * sums


def weight_gradients(factors: ThinFactors, v: Tensor, numbers: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Sums M_v of h a^T over samples and positions with h = sum_i v_i g^i, by pre-activations.

    Yields slices of the pre-activations, and there M_v [columns, pre-activations, d] and the sum of h [columns,
    pre-activations], both float64. M_v has no more than `numbers` numbers, unless a single pre-activation has more.
    """
    (n, s, o, m), d, columns = factors.backward.shape, factors.forward.shape[2], v.shape[2]
    for pre_activations in steps(m, numbers, columns * d):
        width = pre_activations.stop - pre_activations.start
        weights, sums = (v.new_zeros(*shape, dtype=torch.float64) for shape in ((columns, width, d), (columns, width)))
        for rows in steps(n, numbers, s * max(d, max(o, columns) * width)):
            h = torch.einsum("xsim,xiv->xsvm", factors.g(rows, pre_activations), v[rows])
            weights += torch.einsum("xsvm,xsd->vmd", h, factors.a(rows))
            sums += h.sum((0, 1))
        yield pre_activations, weights, sums
