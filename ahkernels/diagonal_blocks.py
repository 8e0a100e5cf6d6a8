"""The diagonal blocks of a centered kernel: the products of the rows of a sample with one another.

With the tangent features phi_x,i less their means over the samples, row (x, i) and row (x, j) have the product
<phi_x,i, phi_x,j>. As in `ahkernels.means_by_output`, features are deviations psi from those of mean factors, which are
small where the kernel is nearly constant, and then lose the mean D of the deviations: nothing large is subtracted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ahkernels.means_by_output import MeanFactors, add_means_of_deviations
from ahkernels.ops import KernelBatch, deviations
from ahkernels.ops.batch import Layer
from ahkernels.ops.plain import chunk_elements, jacobian_slices, jacobian_step, steps

if TYPE_CHECKING:
    from ahkernels.kernel import TangentKernel


def centered_diagonal_blocks(kernel: TangentKernel) -> Tensor:
    """The blocks of C K C between the rows of each sample, with centering per output.

    Args:
        kernel: A kernel with o rows for each sample.

    Returns:
        float64 [n, o, o] for the samples here, on the kernel's device.
    """
    batch, samples = kernel.batch, kernel.samples
    of_deviations = torch.zeros(batch.n, batch.o, batch.o, dtype=torch.float64, device=kernel.device)
    means = torch.zeros_like(of_deviations)  # <psi_x,i, D_j>
    (layers,) = batch.kernels()
    for layer, a0, g0 in zip(layers, *MeanFactors.of(batch, samples), strict=True):
        _add_blocks(of_deviations, layer, a0, g0)
        add_means_of_deviations(means, layer, a0, g0, samples, torch.float64)
    return of_deviations - means - means.mT + samples.sum(means.sum(0)) / samples.n


def _add_blocks(to: Tensor, layer: Layer, a0: Tensor, g0: Tensor) -> None:
    """Adds <psi_x,i, psi_x,j> of a layer to [n, o, o]."""
    (_, s, o, m), d = layer.backward.shape, layer.forward.shape[2]
    of_sample = 2 * s * (d + 2 * o * m) + (0 if layer.by_jacobian else 4 * s * s)
    for rows in steps(len(to), chunk_elements(to) // 16, of_sample):  # so few that copies in float64 stay in the cache
        some = KernelBatch([layer.forward[rows].double()], [layer.backward[rows].double()], [layer.bias], [False], [1])
        deviating = deviations(some, [a0], [g0])
        (a,), (g,) = deviating.forward, deviating.backward
        if layer.by_jacobian:
            for j in jacobian_slices(a, g, 0.0, jacobian_step(a, g)):
                to[rows] += j @ j.mT
            continue
        through_forward = ((a @ a.mT) @ g.flatten(2)).view_as(g)  # [rows, s, o, m]
        to[rows] += g.transpose(1, 2).flatten(2) @ through_forward.transpose(1, 2).flatten(2).mT
