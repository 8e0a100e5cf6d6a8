"""Means of the rows of a kernel by the output of the columns, from its factors and sums over the samples.

With any a0 and g0, here means of the factors over the samples, K has the constant part <phi0_i, phi0_j> of the features
phi0_i = sum_s a0_s (x) g0_s^i, and for each sample x the part h_x,ij = <psi_x,i, phi0_j> of the deviations

    psi_x,i = sum_s a'_s (x) g_s^i + a0_s (x) g'_s^i        a' = a - a0, g' = g - g0.

What is left is T, the kernel of the deviations: K_xi,x'j = T_xi,x'j + h_x,ij + h_x',ji + <phi0_i, phi0_j>. Centering
per output removes all but T. The means of T come from those of the deviations: with D_j the mean of psi_x,j, they are
<psi_x,i, D_j>, small numbers with all of their digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ahkernels.ops import KernelBatch
from ahkernels.ops.batch import Layer
from ahkernels.ops.plain import chunk_elements, steps
from ahkernels.samples import Samples

# Numbers at a time are so small a part of those in one process: means come for each layer while its factors are held
# several times.
_PART = 8


class MeanFactors(NamedTuple):
    """The means of the factors of each layer of a batch, float64 with the digits of tiles.

    Attributes:
        forward: [s, d] of each layer.
        backward: [s, o, m] of each layer.
    """

    forward: list[Tensor]
    backward: list[Tensor]

    @classmethod
    def of(cls, batch: KernelBatch, samples: Samples) -> MeanFactors:
        """The means over all samples."""

        def mean(factor: Tensor) -> Tensor:
            found = samples.sum(factor.sum(0, dtype=torch.float64)) / samples.n
            return found.to(torch.promote_types(factor.dtype, torch.float32)).double()

        return cls([mean(one) for one in batch.forward], [mean(one) for one in batch.backward])

    def split(self, batch: KernelBatch) -> list[MeanFactors]:
        """Those of each kernel."""
        forward, backward = iter(self.forward), iter(self.backward)
        return [
            MeanFactors([next(forward) for _ in range(count)], [next(backward) for _ in range(count)])
            for count in batch.layers
        ]


class MeansByOutput(NamedTuple):
    """Means of the rows of one kernel by the output of the columns, float64 [n, o, o] for the samples here.

    Attributes:
        of_deviations: Those of T.
        of_kernel: Those of K.
    """

    of_deviations: Tensor
    of_kernel: Tensor

    @classmethod
    def of(cls, batch: KernelBatch, means: MeanFactors, samples: Samples) -> MeansByOutput:
        """The means of a batch of one kernel."""
        n, o = batch.n, batch.o
        found = torch.zeros(n, o, o, dtype=torch.float64, device=batch.backward[0].device)
        h, constant = torch.zeros_like(found), found.new_zeros(o, o)
        (layers,) = batch.kernels()
        dtype = torch.promote_types(batch.dtype, torch.float32)  # of tiles
        for layer, a0, g0 in zip(layers, *means, strict=True):
            add_means_of_deviations(found, layer, a0, g0, samples, dtype)
            _add_offsets(h, constant, layer, a0, g0, dtype)
        of_columns = samples.sum(h.sum(0)) / samples.n  # mean of h_x',ji at [j, i]
        return cls(found, found + h + of_columns.T + constant)


def add_means_of_deviations(
    to: Tensor, layer: Layer, a0: Tensor, g0: Tensor, samples: Samples, dtype: torch.dtype
) -> None:
    """Adds <psi_x,i, D_j> of a layer to [n, o, o], from products in a dtype.

    For a centered norm the rounding of tiles is enough: that of means enters it by its square alone, since the entries
    of a centered row add up to zero.
    """
    (n, s, o, m), d, numbers = layer.backward.shape, a0.shape[1], chunk_elements(to) // _PART
    with_bias = functional.pad(a0, (0, 1), value=layer.bias**0.5)
    for outputs in steps(o, numbers, m * (d + 1)):
        count = outputs.stop - outputs.start
        both = to.new_zeros(count * m * (d + s))
        weights, sums = both[: count * m * d].view(count * m, d), both[count * m * d :].view(s, count, m)
        chunks = steps(n, numbers, s * max(d, 2 * o * m))
        for rows in chunks:
            a, g = _deviation(layer.forward[rows], a0, dtype), layer.backward[rows, :, outputs].to(dtype)
            weights += g.flatten(2).flatten(0, 1).T @ a.flatten(0, 1)
            sums += _deviation(layer.backward[rows, :, outputs], g0[:, outputs], dtype).sum(0, dtype=torch.float64)
        del weights, sums
        both = samples.sum(both).div_(samples.n)
        weights = torch.einsum("sjm,sd->jmd", both[count * m * d :].view(s, count, m), with_bias)
        weights[..., :d] += both[: count * m * d].view(count, m, d)  # D
        del both
        at_mean = torch.einsum("jmd,sd->sjm", weights, with_bias).to(dtype)
        of_inputs = weights[..., :d].flatten(0, 1).to(dtype)
        for rows in chunks:
            g = layer.backward[rows].to(dtype)
            at_samples = _deviation(layer.forward[rows], a0, dtype) @ of_inputs.T  # [rows, s, j m]
            at_samples = at_samples.view(*g.shape[:2], count, m)
            to[rows, :, outputs] += _over_positions(g, at_samples)
            of_gradients = _deviation(layer.backward[rows], g0, dtype)
            to[rows, :, outputs] += _over_positions(of_gradients, at_mean.expand_as(at_samples))


def _over_positions(g: Tensor, h: Tensor) -> Tensor:
    """sum_s,m g h [rows, i, j] of [rows, s, i, m] and [rows, s, j, m]."""
    return (g.transpose(1, 2).flatten(2) @ h.transpose(1, 2).flatten(2).mT).double()


def _add_offsets(h: Tensor, constant: Tensor, layer: Layer, a0: Tensor, g0: Tensor, dtype: torch.dtype) -> None:
    """Adds h of a layer to [n, o, o], and <phi0_i, phi0_j> to [o, o]."""
    s, o, m = layer.backward.shape[1:]
    of_means = torch.einsum("sim,tjm->isjt", g0, g0)
    p0 = a0 @ a0.T + layer.bias
    constant += torch.einsum("isjt,st->ij", of_means, p0)
    for rows in steps(len(h), chunk_elements(h) // _PART, s * max(s * o * o, o * m)):
        a, g = _deviation(layer.forward[rows], a0, dtype), _deviation(layer.backward[rows], g0, dtype)
        p = a.double() @ a0.T  # <a', a0> [rows, s, s']
        q = (g @ g0.flatten(0, 1).to(g).T).double().view(*g.shape[:3], s, o)  # <g', g0> [rows, s, i, s', j]
        # (p0 + p) q + p q0
        h[rows] += torch.einsum("xst,xsitj->xij", p + p0, q) + torch.einsum("xst,isjt->xij", p, of_means)


def _deviation(factor: Tensor, mean: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor less its mean."""
    return factor.to(dtype) - mean.to(dtype)


def less_half(means: Tensor, samples: Samples) -> Tensor:
    """Means of rows [n, ...] less half of the mean of all: what rows and columns lose each when K is centered."""
    return means - samples.sum(means.sum(0)) / (2 * samples.n)


def between_outputs(means: Sequence[Tensor], samples: Samples) -> Tensor:
    """The inner products [q, q] of kernels centered as a whole, less those of the same centered per output.

    2n <Z_a B, Z_b B> + n^2 <B m_a B, B m_b B> with the means M [n, o, o] of rows by output, their mean m over the
    samples, Z = M - m and B = I_o - 11^T/o.
    """
    of_all = [samples.sum(one.sum(0)) / samples.n for one in means]
    deviations = [one - mean for one, mean in zip(means, of_all, strict=True)]
    between = torch.stack([(one - one.mean(2, keepdim=True)).flatten() for one in deviations])
    blocks = torch.stack([(m - m.mean(0) - m.mean(1, keepdim=True) + m.mean()).flatten() for m in of_all])
    return 2 * samples.n * samples.sum(between @ between.T) + samples.n**2 * blocks @ blocks.T
