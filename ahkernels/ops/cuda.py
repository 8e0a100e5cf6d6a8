"""The ops on CUDA, from two kernels: a factor as a sum of bf16 parts, and all that is done tile by tile.

Tensor cores multiply bf16 numbers. A product of fp32 numbers is a sum of such products: of 3 parts with 24 bits at
"highest" (6 products), of 2 parts at "high" (3 products); "medium" takes the numbers rounded to bf16. Factors that are
bf16 already need one part at any precision.

Everything else is torch's: the forward Gram in float64 (it is tiny beside K), by panels of samples, and kernels of
float64 numbers or over samples alone, which take float64 products (see `ahkernels.ops.plain`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ahkernels.ops import plain
from ahkernels.ops.scaling import power_of_two

# Rows of the forward Gram are made for whole tiles of K at any number of outputs.
PANEL_SAMPLES = 128
# Of the forward Gram, in float64 and float32, and of rows of K where two kernels are compared.
PANEL_BYTES = 256 << 20
PARTS = {"highest": 3, "high": 2, "medium": 1}


def pack_parts(factor: Tensor, scale: Tensor, count: int) -> Tensor:
    """A factor [n, s, o, m] times scale as bf16 parts [count, s, rows, k]: row x*o + i, zeros up to whole tiles."""
    result: Tensor = torch.ops.ahkernels.pack_parts(factor, scale, count)
    return result


def tangent_tiles(
    parts: Tensor, p: Tensor, means: Tensor, unscale: Tensor, n: int, o: int, sample: int, result: str, entries: Tensor
) -> Tensor:
    """What `result` asks of the entries of K, less means [2, rows], in the rows of the samples that p begins at.

    Args:
        parts: Backward factor from `pack_parts`.
        p: Forward Gram of samples from `sample` on, float32 [s, s, samples of the rows, n - sample].
        means: What is subtracted from rows and from columns, float32; empty for "matrix".
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


@dataclass(frozen=True)
class ScaledKernel:
    """A kernel times forward_scale^2 backward_scale^2, as the tiles compute it.

    Attributes:
        forward: Scaled forward factor, float64 [s, n, d].
        bias: b, scaled, a float64 scalar on the device.
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
    def of(cls, forward: Tensor, backward: Tensor, bias: float, precision: str) -> ScaledKernel:
        """Scales and packs; nothing waits for the device."""
        forward_scale, backward_scale = power_of_two(forward, bias), power_of_two(backward)
        count = 1 if backward.dtype == torch.bfloat16 else PARTS[precision]
        return cls(
            forward.transpose(0, 1).double() * forward_scale,
            bias * forward_scale**2,
            pack_parts(backward, backward_scale, count),
            forward_scale,
            backward_scale,
            backward.shape[2],
        )

    @property
    def n(self) -> int:
        """Samples."""
        return self.forward.shape[1]

    def forward_gram(self, rows: slice) -> Tensor:
        """P between the samples in rows and those from there on, float32 [s, s, rows, n - rows.start]."""
        a, others = self.forward[:, None, rows], self.forward[None, :, rows.start :]
        return (a @ others.mT).add_(self.bias).float()

    def means(self, row_means: Tensor) -> Tensor:
        """What centering subtracts from rows and from columns; the mean of all is in the former."""
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
        """`tangent_tiles` for the samples in rows."""
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


class KernelSum:
    """A sum of terms, and terms by their Jacobian: panels of rows to which one part after the other is added."""

    def __init__(self, terms: Sequence[tuple[Tensor, Tensor, float, bool]], precision: str) -> None:
        self.terms = terms
        self.precision = precision
        scales = [(power_of_two(a, b), power_of_two(g)) for a, g, b, _ in terms]
        self.scale = plain.smallest([scale_a**2 * scale_g**2 for scale_a, scale_g in scales])

    @property
    def bytes_per_sample(self) -> int:
        """Of the forward Grams of pairs of uses."""
        return max((12 * a.shape[1] ** 2 * a.shape[0] for a, _, _, route in self.terms if not route), default=0)

    def panel(self, rows: slice) -> Tensor:
        """As `plain.ScaledTerm.panel`, times scale."""
        (n, _, o, _), c = self.terms[0][1].shape, rows.stop - rows.start
        total = torch.zeros(c * o, n * o, dtype=torch.float32, device=self.terms[0][1].device)
        for part in self._parts():
            # The tiles below the diagonal are not written.
            entries = torch.zeros_like(total)
            means = entries.new_zeros(2, part.parts.shape[2])
            part.tiles(rows, "rows", means=means, entries=entries)
            unscale = (self.scale / part.forward_scale**2) / part.backward_scale**2
            total.addcmul_(entries, unscale.float())
        panel = total.view(c, o, n, o)[:, :, rows.start :]
        panel[:, :, :c] = plain.mirrored(panel[:, :, :c])
        return panel

    def _parts(self) -> Iterator[ScaledKernel]:
        for a, g, bias, by_jacobian in self.terms:
            if not by_jacobian:
                yield ScaledKernel.of(a, g, bias, self.precision)
                continue
            for j in plain.jacobian_slices(a.float(), g.float(), bias, plain.jacobian_step(a, g)):
                yield ScaledKernel.of(a.new_empty(len(a), 1, 0), j.unsqueeze(1), 1.0, self.precision)


def _panels(n: int, bytes_per_sample: int) -> Iterator[slice]:
    """Samples in steps of whole PANEL_SAMPLES within PANEL_BYTES."""
    step = max(1, PANEL_BYTES // bytes_per_sample // PANEL_SAMPLES) * PANEL_SAMPLES
    for begin in range(0, n, step):
        yield slice(begin, min(begin + step, n))


def _takes_plain(backward: Tensor, precision: str) -> bool:
    return backward.dtype == torch.float64 or (backward.shape[2] == 1 and precision != "medium")


def centered_moments(
    forward: list[Tensor],
    backward: list[Tensor],
    bias: list[float],
    row_means: list[Tensor],
    precision: str,
    by_jacobian: Sequence[bool] = (),
    terms: Sequence[int] = (),
) -> Tensor:
    """See `ahkernels.ops.centered_moments`."""
    if _takes_plain(backward[0], precision):
        return plain.centered_moments(forward, backward, bias, row_means, precision, by_jacobian, terms)
    n, _, o, _ = backward[0].shape
    if any(by_jacobian) or len(row_means) != len(forward):
        every_term = plain.terms_of(forward, backward, bias, by_jacobian)
        sums = [KernelSum(kernel, precision) for kernel in plain.in_sums(every_term, terms)]
        held = 4 * (len(sums) + 3) * o * n * o + max(kernel.bytes_per_sample for kernel in sums)
        scales = [kernel.scale for kernel in sums]
        return plain.moments_of_panels(
            lambda rows: [kernel.panel(rows) for kernel in sums],
            list(_panels(n, held)),
            plain.subtract_row_means(row_means, scales),
            scales,
        )
    kernels = [ScaledKernel.of(a, g, b, precision) for a, g, b in zip(forward, backward, bias, strict=True)]
    means = [kernel.means(row) for kernel, row in zip(kernels, row_means, strict=True)]
    total = row_means[0].new_zeros(len(kernels), len(kernels))
    uses = max(kernel.forward.shape[0] for kernel in kernels)
    held = 12 * uses**2 * n if len(kernels) == 1 else max(12 * uses**2 * n, 4 * o * n * o)
    for rows in _panels(n, held):
        for i, kernel in enumerate(kernels):
            total[i, i] += kernel.tiles(rows, "squares", means=means[i]).sum()
            if i + 1 == len(kernels):
                break
            entries = means[i].new_empty((rows.stop - rows.start) * o, n * o)
            kernel.tiles(rows, "rows", means=means[i], entries=entries)
            for j in range(i + 1, len(kernels)):
                total[j, i] += kernels[j].tiles(rows, "products", means=means[j], entries=entries).sum()
    total = total.tril() + total.tril(-1).T
    for i, kernel in enumerate(kernels):
        # One after the other: the product of extreme scales can leave the range of float64.
        for scale in (kernel.forward_scale, kernel.backward_scale):
            total[i] = total[i] / scale / scale
            total[:, i] = total[:, i] / scale / scale
    return total


def tangent_gram(
    forward: list[Tensor],
    backward: list[Tensor],
    bias: list[float],
    precision: str,
    by_jacobian: Sequence[bool] = (),
) -> Tensor:
    """See `ahkernels.ops.tangent_gram`."""
    if _takes_plain(backward[0], precision):
        return plain.tangent_gram(forward, backward, bias, precision, by_jacobian)
    n, _, o, _ = backward[0].shape
    if any(by_jacobian) or len(forward) > 1:
        kernel_sum = KernelSum(plain.terms_of(forward, backward, bias, by_jacobian), precision)
        rows = list(_panels(n, 20 * o * n * o + kernel_sum.bytes_per_sample))
        return plain.gram_of_panels(kernel_sum.panel, rows, n, o, kernel_sum.scale)
    kernel = ScaledKernel.of(forward[0], backward[0], bias[0], precision)
    size = kernel.n * kernel.o
    out = torch.empty(size, size, dtype=torch.float32, device=forward[0].device)
    unscale = torch.stack((kernel.forward_scale, kernel.backward_scale)) ** -2.0
    for now in _panels(kernel.n, 12 * kernel.forward.shape[0] ** 2 * kernel.n):
        kernel.tiles(now, "matrix", unscale=unscale, entries=out)
    return out
