"""Inner products of kernels with the outputs contracted first, whose cost does not grow with their square.

With the gradients G_x [o, m] of the outputs of a sample in one layer and H_x [o, m'] in another or the same one, and
T_x = G_x^T H_x [m, m'],

    <G_x G_x'^T, H_x H_x'^T>_F = <T_x, T_x'>_F,

so that <K, K'>_F of kernels K = sum over layers of P o G G^T is a sum over pairs of layers and of samples of
P[x, x'] P'[x, x'] <T_x, T_x'>. ||K||_F^2 takes n^2 m^2 / 4 multiply-adds for each layer however many outputs there are,
and n o m^2 / 2 to form T, where tiles take (n o)^2 m / 2.

The inner product of centered kernels is what is left once that of the means is subtracted. With the mean M [n, o, o']
of each row by the output of the columns, and its mean m [o, o'] over the samples,

    <C K C, C K' C> = <K, K'> - 2 n <M, M'> + n^2 <m, m'>

per output, and likewise with the means over all n o columns for global centering. A kernel with ||K||^2 =
k ||C K C||^2 loses a factor k of its digits in that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ahkernels.centering import Centering
from ahkernels.ops import KernelBatch
from ahkernels.ops.batch import Layer
from ahkernels.ops.plain import steps
from ahkernels.ops.scaling import scales_of_layers
from ahkernels.samples import Pairs, Samples

_NUMBERS = 1 << 22  # that are held at a time: of T, of a block of pairs of samples, of means
_PART_OF_FACTOR = 8  # or of T so small a part of the backward factor, so that slices are wide enough
_NUMBERS_IN_CACHE = 1 << 19  # of the backward factor, while T is formed from them
_NO_SCALE = 2**16  # up to this power of two, fourth powers neither overflow nor vanish in float32
_WIDTH = 64  # pre-activations in a slice of T
_BLOCK = 2048  # samples in a block of pairs
_PANELS = 4  # of rows in a block on the diagonal, which is symmetric: what is left of them counts twice
_SAMPLES, _OUTPUTS, _OTHER_OUTPUTS = 128, 32, 256  # whose means are taken at a time


class _Layer(NamedTuple):
    """A layer with one position, whose factors are taken times powers of two.

    Attributes:
        kernel: The index of its kernel.
        a: Forward factor and the square root of the bias, scaled, float64 [n, d + 1].
        g: Backward factor [n, o, m].
        scale_g: Its power of two.
        scale: What its kernel is multiplied by in turn.
    """

    kernel: int
    a: Tensor
    g: Tensor
    scale_g: float
    scale: float

    @classmethod
    def of(cls, layer: Layer, kernel: int, scale_a: float, scale_g: float) -> _Layer:
        """A layer whose factors the powers of two bring near one."""
        forward, backward, bias, _ = layer
        if 1 / _NO_SCALE <= scale_g <= _NO_SCALE:
            scale_g = 1.0
        a = torch.nn.functional.pad(forward[:, 0].double(), (0, 1), value=math.sqrt(bias)) * scale_a
        return cls(kernel, a, backward[:, 0], scale_g, (scale_a * scale_g) ** 2)

    def gradients(self, samples: slice, outputs: slice, dtype: torch.dtype) -> Tensor:
        """The scaled backward factor of some samples and outputs, [samples, outputs, m]."""
        g = self.g[samples, outputs].to(dtype)
        return g if self.scale_g == 1 else g * self.scale_g


def inner_products(
    batch: KernelBatch, centerings: Sequence[Centering | None], dtype: torch.dtype, samples: Samples
) -> dict[Centering | None, Tensor]:
    """<C K_a C, C K_b C>_F of q kernels for each centering, and for None <K_a, K_b>_F: float64 [q, q] on their device.

    Args:
        batch: The kernels, of layers with one position.
        centerings: The centerings.
        dtype: That of products.
        samples: The samples that the kernels are over.
    """
    whole = _inner_products(batch, dtype, samples)
    found: dict[Centering | None, Tensor] = {None: whole}
    if "per_output" in centerings:
        rows_of_blocks, blocks = _means_by_output(batch, dtype, samples)
        found["per_output"] = whole - 2 * samples.n * rows_of_blocks + samples.n**2 * blocks
    if "global" in centerings:
        rows = samples.n * batch.o
        ones = torch.ones(batch.n, batch.o, 1, dtype=torch.float64, device=batch.backward[0].device)
        means = torch.stack([samples.product(one, ones).flatten() for one in batch.split()]) / rows
        mean = samples.sum(means.sum(1)) / rows
        found["global"] = whole - 2 * rows * samples.sum(means @ means.T) + rows**2 * mean.outer(mean)
    return found


def _layers(batch: KernelBatch) -> list[_Layer]:
    """The layers of all kernels; waits for the device once, for their scales."""
    layers = [(layer, index) for index, kernel in enumerate(batch.kernels()) for layer in kernel]
    found = scales_of_layers([layer for layer, _ in layers])
    scales = zip(*torch.stack((found.forward, found.backward)).tolist(), strict=True)
    return [_Layer.of(*layer, *of_layer) for layer, of_layer in zip(layers, scales, strict=True)]


def _inner_products(batch: KernelBatch, dtype: torch.dtype, samples: Samples) -> Tensor:
    """<K_a, K_b>_F of kernels, [q, q]."""
    count = len(batch.forward)

    def part(tensors: Sequence[Tensor], pairs: Pairs | None) -> Tensor:
        layers = _layers(batch._replace(forward=list(tensors[:count]), backward=list(tensors[count:])))
        blocks = steps(len(tensors[0]), _BLOCK, 1)
        of_blocks = list(itertools.combinations_with_replacement(blocks, 2))
        if pairs is not None:
            others = [
                slice(pairs.second_begin + one.start, pairs.second_begin + one.stop)
                for one in steps(len(tensors[0]) - pairs.second_begin, _BLOCK, 1)
            ]
            of_blocks = list(itertools.product(steps(pairs.first_end, _BLOCK, 1), others))
        return _over_blocks(layers, of_blocks, dtype)

    zero = torch.zeros(batch.kernel_count, batch.kernel_count, dtype=torch.float64, device=batch.backward[0].device)
    return samples.sum_over_pairs([*batch.forward, *batch.backward], part, zero)


def _over_blocks(layers: Sequence[_Layer], blocks: Sequence[tuple[slice, slice]], dtype: torch.dtype) -> Tensor:
    """The part of <K_a, K_b>_F [q, q] that blocks of pairs of samples have; those off the diagonal count twice."""
    count = layers[-1].kernel + 1
    found = layers[0].a.new_zeros(count, count)
    for first, second in itertools.combinations_with_replacement(layers, 2):
        total = found.new_zeros(())
        for rows, columns in blocks:
            of_block = 1 if rows == columns else 2
            total += of_block * _of_block(first, second, rows, columns, dtype) / first.scale / second.scale
        found[first.kernel, second.kernel] += total
        if first is not second:
            found[second.kernel, first.kernel] += total
    return found


def _of_block(first: _Layer, second: _Layer, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
    """The sum of P P' <T, T'> over a block of pairs of samples; one on the diagonal is symmetric."""
    samples, others = rows.stop - rows.start, columns.stop - columns.start
    same = rows == columns
    step = -(-samples // _PANELS) if same else samples
    panels = steps(samples, step, 1)
    products = first.a.new_zeros(samples, others, dtype=dtype)  # <T_x, T_x'>
    of_columns = iter(()) if same else _slices(first, second, columns, dtype)
    for t in _slices(first, second, rows, dtype):
        other = t if same else next(of_columns)
        for panel in panels:
            beyond = panel.start if same else 0
            products[panel, beyond:].addmm_(t[panel], other[beyond:].T)
        del t, other  # before the next ones
    grams = [
        (layer.a[rows].to(dtype), layer.a[columns].to(dtype)) for layer in (first, second)[: 1 + (first is not second)]
    ]
    total = first.a.new_zeros(())
    for panel in panels:
        beyond = panel.start if same else 0
        p = products[panel, beyond:]
        for a, b in grams:
            gram = a[panel] @ b[beyond:].T
            p *= gram.square_() if first is second else gram
        total += p.sum(dtype=torch.float64)
        if same:  # what is right of the square on the diagonal stands for its mirror image, too
            total += p[:, len(p) :].sum(dtype=torch.float64)
    return total


def _slices(first: _Layer, second: _Layer, samples: slice, dtype: torch.dtype) -> Iterator[Tensor]:
    """T = G^T H of some samples by slices of its rows, each as vectors [samples, numbers].

    Where H is G, T is symmetric: a slice begins at its diagonal, and what is beyond it counts twice.
    """
    n, symmetric = samples.stop - samples.start, first is second
    (_, o, m), columns = first.g.shape, second.g.shape[2]
    numbers = max(_NUMBERS, first.g.numel() // _PART_OF_FACTOR)
    width = max(1, min(_WIDTH, numbers // (min(len(first.g), _BLOCK) * columns)))  # the same for all blocks
    held = max(width, _NUMBERS // (n * columns) // width * width)  # slices that are formed together
    step = max(1, _NUMBERS_IN_CACHE // (o * max(m, columns)))
    for begin in range(0, m, held):
        cuts = [slice(i, min(i + width, m)) for i in range(begin, min(begin + held, m), width)]
        found = [
            first.a.new_empty(n, cut.stop - cut.start, columns - symmetric * cut.start, dtype=dtype) for cut in cuts
        ]
        for some in range(0, n, step):
            chunk = slice(samples.start + some, min(samples.start + some + step, samples.stop))
            g = first.gradients(chunk, slice(None), dtype)
            h = g if symmetric else second.gradients(chunk, slice(None), dtype)
            for cut, t in zip(cuts, found, strict=True):
                torch.bmm(g[:, :, cut].mT, h[:, :, symmetric * cut.start :], out=t[some : some + step])
        for cut in cuts:
            t = found.pop(0)
            if symmetric:
                t[:, :, cut.stop - cut.start :] *= math.sqrt(2)
            yield t.flatten(1)
            del t


def _means_by_output(batch: KernelBatch, dtype: torch.dtype, samples: Samples) -> tuple[Tensor, Tensor]:
    """<M_a, M_b> and <m_a, m_b>, [q, q], for the means M of rows by the output of the columns, and their means m."""
    count, o = batch.kernel_count, batch.o
    blocks = torch.zeros(count, o, o, dtype=torch.float64, device=batch.backward[0].device)
    total = blocks.new_zeros(count, count)
    means_of = _means_of_products(batch, samples) if samples.sharded else _means_of_weights(batch, dtype)
    for columns in columns_of(o):
        for outputs, means in means_of(columns):  # [q, samples, outputs, columns]
            total += means.flatten(1) @ means.flatten(1).T
            blocks[:, outputs, columns] += means.sum(1) / samples.n
    blocks, total = samples.sum(blocks), samples.sum(total)
    return total, blocks.flatten(1) @ blocks.flatten(1).T


def columns_of(o: int) -> list[slice]:
    """Outputs of the columns whose means are taken together."""
    return steps(o, _OUTPUTS, 1)


_MeansOf: TypeAlias = Callable[[slice], Iterator[tuple[slice, Tensor]]]


def _means_of_products(batch: KernelBatch, samples: Samples) -> _MeansOf:
    """M [q, n, o, columns] for some columns, from products with the kernels."""

    def of_columns(columns: slice) -> Iterator[tuple[slice, Tensor]]:
        ones = torch.eye(batch.o, dtype=torch.float64, device=batch.backward[0].device)[:, columns]
        v = ones.expand(batch.n, *ones.shape).contiguous()
        yield slice(0, batch.o), torch.stack([samples.product(one, v) for one in batch.split()]) / samples.n

    return of_columns


def _means_of_weights(batch: KernelBatch, dtype: torch.dtype) -> _MeansOf:
    """M [q, rows, outputs, columns] of some samples and outputs after others, for some columns.

    M_x = G_x W_x^T with W_x = (1/n) sum over x' of P[x, x'] G_x'.
    """
    layers, count, n, o = _layers(batch), batch.kernel_count, batch.n, batch.o

    def of_columns(columns: slice) -> Iterator[tuple[slice, Tensor]]:
        weights = [_weights(layer, columns, dtype) for layer in layers]
        for rows in steps(n, max(1, min(_SAMPLES, _NUMBERS // (count * n))), 1):
            of_rows = [weights_of(rows) for weights_of in weights]  # W [rows, columns, m] of each layer
            for outputs in steps(o, _OTHER_OUTPUTS, 1):
                shape = (rows.stop - rows.start, outputs.stop - outputs.start, columns.stop - columns.start)
                means = torch.zeros(count, *shape, dtype=torch.float64, device=batch.backward[0].device)
                for layer, w in zip(layers, of_rows, strict=True):
                    product = torch.bmm(layer.gradients(rows, outputs, dtype), w.mT)
                    means[layer.kernel] += product.double() / layer.scale
                yield outputs, means

    return of_columns


def _weights(layer: _Layer, columns: slice, dtype: torch.dtype) -> Callable[[slice], Tensor]:
    """What gives W [rows, columns, m] of some samples: from P, or through the forward factors where that is less."""
    n, width = layer.a.shape
    outputs = range(columns.start, columns.stop)

    def of_output(j: int) -> Tensor:
        return layer.gradients(slice(None), slice(j, j + 1), dtype).flatten(1) / n

    if n <= 2 * width:

        def through_samples(rows: slice) -> Tensor:
            p = (layer.a[rows] @ layer.a.T).to(dtype)
            return torch.stack([p @ of_output(j) for j in outputs], 1)

        return through_samples
    a = layer.a.to(dtype)
    through = [a.T @ of_output(j) for j in outputs]  # [d + 1, m] of each output
    return lambda rows: torch.stack([a[rows] @ one for one in through], 1)
