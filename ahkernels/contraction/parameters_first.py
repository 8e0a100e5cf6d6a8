"""Inner products of kernels with the samples contracted first, for layers with few parameters.

With the Jacobians J [n o, P] and H [n o, P'] of kernels K and K', <C K C, C K' C>_F = ||(C J)^T C H||_F^2, a matrix
[P, P']. ||C K C|| takes n o P^2 multiply-adds, where tiles take (n o)^2 m / 2. Means leave the Jacobian in float64
before it is multiplied, so that near-constant kernels lose no digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ahkernels.centering import Centering
from ahkernels.contraction.order import LayerShape
from ahkernels.ops import KernelBatch
from ahkernels.ops.batch import Layer
from ahkernels.ops.plain import jacobian_slices, steps
from ahkernels.ops.scaling import largest_magnitudes, to_one
from ahkernels.samples import Samples

_NUMBERS = 1 << 23  # of the Jacobian that are held at a time


class _Jacobian:
    """The Jacobian of a kernel times a number, by samples.

    Attributes:
        scale: What the kernel is multiplied by.
        columns: The number of its parameters.
    """

    def __init__(self, layers: Sequence[Layer], samples: Samples) -> None:
        self._layers = layers
        of_all = samples.maximum(largest_magnitudes(layers))
        self._scales = [(of_a, of_g) for of_a, of_g in to_one(of_all).T.tolist()]
        self.scale = min((of_a * of_g) ** 2 for of_a, of_g in self._scales)
        self.columns = sum(LayerShape.of(layer).parameters for layer in layers)

    def of(self, samples: slice) -> Tensor:
        """J of some samples, float64 [samples, o, P]."""
        return torch.cat([self._of_layer(*one, samples) for one in zip(self._layers, self._scales, strict=True)], 2)

    def _of_layer(self, layer: Layer, scales: tuple[float, float], samples: slice) -> Tensor:
        of_a, of_g = scales
        a, g = layer.forward[samples].double() * of_a, layer.backward[samples].double() * of_g
        slices = list(jacobian_slices(a, g, layer.bias * of_a**2, g.shape[3]))
        return torch.cat(slices, 2).mul_(math.sqrt(self.scale) / (of_a * of_g))


def inner_products(
    batch: KernelBatch, centerings: Sequence[Centering | None], dtype: torch.dtype, samples: Samples
) -> dict[Centering | None, Tensor]:
    """<C K_a C, C K_b C>_F of q kernels for each centering, and for None <K_a, K_b>_F: float64 [q, q] on their device.

    Args:
        batch: The kernels, of any layers.
        centerings: The centerings.
        dtype: That of products.
        samples: The samples that the kernels are over.
    """
    jacobians = [_Jacobian(layers, samples) for layers in batch.kernels()]
    columns = [one.columns for one in jacobians]
    chunks = steps(batch.n, max(1, _NUMBERS // (batch.o * sum(columns))), 1)
    means = torch.zeros(batch.o, sum(columns), dtype=torch.float64, device=batch.backward[0].device)
    for some in chunks:
        means += torch.cat([one.of(some).sum(0) for one in jacobians], 1)
    means = samples.sum(means) / samples.n
    gram = means.new_zeros(means.shape[1], means.shape[1])
    for some in chunks:
        part = torch.cat([one.of(some) for one in jacobians], 2)
        centered = (part - means).flatten(0, 1).to(dtype)
        gram += centered.T @ centered
    gram = samples.sum(gram)
    between = means - means.mean(0)
    added: dict[Centering | None, Tensor | None] = {"per_output": None, "global": between, None: means}
    found: dict[Centering | None, Tensor] = {}
    for one, rows in added.items():
        if one in centerings or one is None:
            square = gram if rows is None else gram + samples.n * rows.T @ rows
            blocks = [block for row in torch.split(square, columns) for block in torch.split(row, columns, 1)]
            found[one] = torch.stack([block.square().sum() for block in blocks]).view(len(columns), -1)
            for index, jacobian in enumerate(jacobians):
                found[one][index] /= jacobian.scale
                found[one][:, index] /= jacobian.scale
    return found
