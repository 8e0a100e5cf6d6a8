"""Squared norms of a kernel with the samples contracted first, for layers with few parameters.

K = J J^T has the norm of J^T J: with the Jacobian J [n o, P], ||C K C||_F = ||(C J)^T C J||_F, a matrix [P, P]. That
takes n o P^2 multiply-adds, where tiles take (n o)^2 m / 2. Means leave the Jacobian in float64 before it is
multiplied, so that near-constant kernels lose no digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ahkernels.centering import Centering
from ahkernels.ops import KernelBatch
from ahkernels.ops.batch import Layer
from ahkernels.ops.plain import jacobian_slices
from ahkernels.ops.scaling import power_of_two

_NUMBERS = 1 << 23  # of the Jacobian that are held at a time


class _Jacobian:
    """The Jacobian of a kernel times a number, by samples.

    Attributes:
        scale: What the kernel is multiplied by.
    """

    def __init__(self, batch: KernelBatch) -> None:
        self.layers = batch.kernels()[0]
        self.n, self.o = batch.n, batch.o
        self.scales = [(float(power_of_two(a, bias)), float(power_of_two(g))) for a, g, bias, _ in self.layers]
        self.scale = min((of_a * of_g) ** 2 for of_a, of_g in self.scales)

    def parts(self) -> Iterator[Tensor]:
        """J of some samples after the other, float64 [samples, o, P]."""
        step = max(1, _NUMBERS // (self.o * sum(map(parameters, self.layers))))
        for begin in range(0, self.n, step):
            rows = slice(begin, begin + step)
            yield torch.cat([self._of_layer(*one, rows) for one in zip(self.layers, self.scales, strict=True)], 2)

    def _of_layer(self, layer: Layer, scales: tuple[float, float], rows: slice) -> Tensor:
        of_a, of_g = scales
        a, g = layer.forward[rows].double() * of_a, layer.backward[rows].double() * of_g
        slices = list(jacobian_slices(a, g, layer.bias * of_a**2, g.shape[3]))
        return torch.cat(slices, 2).mul_(math.sqrt(self.scale) / (of_a * of_g))


def parameters(layer: Layer) -> int:
    """How many columns the Jacobian of a layer has."""
    return layer.backward.shape[3] * (layer.forward.shape[2] + (layer.bias > 0))


def squared_norms(
    batch: KernelBatch, centerings: Sequence[Centering | None], dtype: torch.dtype
) -> dict[Centering | None, float]:
    """||C K C||_F^2 for each centering, and for None ||K||_F^2.

    Args:
        batch: One kernel, of any layers.
        centerings: The centerings.
        dtype: That of products.
    """
    j = _Jacobian(batch)
    sums: Tensor | float = 0.0
    for part in j.parts():
        sums = sums + part.sum(0)
    assert isinstance(sums, Tensor)
    means = sums / j.n  # [o, P]
    gram = means.new_zeros(means.shape[1], means.shape[1])
    for part in j.parts():
        centered = (part - means).flatten(0, 1).to(dtype)
        gram += centered.T @ centered
    between = means - means.mean(0)
    added: dict[Centering | None, Tensor | None] = {"per_output": None, "global": between, None: means}
    return {
        one: float((gram if rows is None else gram + j.n * rows.T @ rows).square().sum()) / j.scale / j.scale
        for one, rows in added.items()
        if one in centerings or one is None
    }
