"""A kernel of several layers that is too large for one pass over its tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ahkernels.ops import plain
from ahkernels.ops.batch import Layer
from ahkernels.ops.cuda.panels import groups_of
from ahkernels.ops.cuda.scaled_kernel import ScaledKernel, jacobian_terms
from ahkernels.ops.scaling import scales_of_layers


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
        self.packed = [ScaledKernel.of(group, precision) for group in groups_of(layers)]
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
                for term in jacobian_terms(layer):
                    yield ScaledKernel.of([term], self.precision)
