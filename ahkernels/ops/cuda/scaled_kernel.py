"""A kernel as tiles compute it: its factors scaled and written in bf16 parts.

Tensor cores multiply bf16 numbers. A product of fp32 numbers is a sum of such products: of 3 parts with 24 bits at
"highest" (6 products), of 2 parts at "high" (3 products). "medium" takes the numbers rounded to bf16. Factors that are
bf16 already need one part at any precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ahkernels.ops import plain
from ahkernels.ops.batch import Layer
from ahkernels.ops.cuda import tiles
from ahkernels.ops.cuda.forward_gram import ScaledForward
from ahkernels.ops.scaling import scales_of_layers

PARTS = {"highest": 3, "high": 2, "medium": 1}
# The longest sums over k that are left to tensor cores (csrc/cuda/problem.cuh says what these lose): up to 7e-5 at
# "medium" and 9e-6 at "high", of which the emulator finds 5e-6 and 3e-7. Factors are rounded by 2e-3 and 8e-6 there.
STRAIGHT = {"highest": 0, "high": 128, "medium": 1024}


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
        terms = [term for layer in layers for term in (jacobian_terms(layer) if layer.by_jacobian else [layer])]
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
            sizes, parts = [], tiles.pack_parts(terms[0].backward, each[0][1], count)
        else:
            sizes = [size for term in terms for size in (term.backward.shape[1], _slices(term))]
            blocks = sum(term.backward.shape[1] * _slices(term) for term in terms)
            rows = -(-n * o // tiles.PANEL_SAMPLES) * tiles.PANEL_SAMPLES
            parts = terms[0].backward.new_empty(count, blocks, rows, tiles.SLICE, dtype=torch.bfloat16)
            first = 0
            for term, (_, scale_g, _) in zip(terms, each, strict=True):
                tiles.pack_slices(term.backward, scale_g, parts, first)
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
        return tiles.tangent_tiles(
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


def _slices(layer: Layer) -> int:
    """Slices along k of each position; see `pack_slices`."""
    return max(1, -(-layer.backward.shape[3] // tiles.SLICE))


def jacobian_terms(layer: Layer) -> Iterator[Layer]:
    """The Jacobian of a layer in slices, each as the backward factor of a layer whose forward Gram is 1."""
    a, g = layer.forward, layer.backward
    for j in plain.jacobian_slices(a.float(), g.float(), layer.bias, plain.jacobian_step(a, g)):
        yield Layer(a.new_empty(len(a), 1, 0), j.unsqueeze(1), 1.0, False)
