"""A near-constant kernel as what centering leaves of it and what depends on one sample alone: numbers in float64.

With any a0 and g0^i (here means over the samples), a = a0 + a', g^i = g0^i + g'^i, p0 = <a0, a0> + b, p_r = <a'_r, a0>,
q0_ij = <g0^i, g0^j> and q_r,ij = <g'^i_r, g0^j>,

    K_ri,sj = T_ri,sj + h_r,ij + h_s,ji + p0 q0_ij                      h_r,ij = p0 q_r,ij + q0_ij p_r + p_r q_r,ij
    T_ri,sj = (p0 + p_r + p_s + P') Q' + P' (q0_ij + q_r,ij + q_s,ji) + p_r q_s,ji + q_r,ij p_s

with the Grams P' = <a'_r, a'_s> and Q' = <g'^i_r, g'^j_s> of deviations. T is as small as what centering leaves of K,
and is for tiles; all else is here. T is the kernel of `deviations`, whose products give its row means without a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ahkernels.ops import plain
from ahkernels.ops.batch import KernelBatch, Layer
from ahkernels.ops.deviations import deviations
from ahkernels.ops.scaling import finite, scales_of_layers, without_scales


@dataclass(frozen=True)
class NearConstant:
    """The kernel of a layer with one position times scale, in the terms above.

    Attributes:
        deviations: The layer of which T is the kernel, in the dtype of tiles: forward [n, 2, d] holds a' and a0,
            backward [n, 2, o, m] holds g and g'.
        p0: A float64 scalar.
        p: float64 [n].
        q0: float64 [o, o].
        q: float64 [n, o, o].
        scale: A power of two.
    """

    deviations: Layer
    p0: Tensor
    p: Tensor
    q0: Tensor
    q: Tensor
    scale: Tensor

    @classmethod
    def of(cls, layer: Layer) -> NearConstant:
        """Scales the factors and takes their means out of them; nothing waits for their device."""
        (scales,) = scales_of_layers([layer]).of_each()
        dtype = plain.tile_dtype(layer.backward)
        a, g = layer.forward.to(dtype) * scales.forward.to(dtype), layer.backward.to(dtype) * scales.backward.to(dtype)
        if layer.bias:  # one more input, which is the same in all samples
            a = torch.cat((a, (scales.forward * layer.bias**0.5).to(dtype).expand(*a.shape[:2], 1)), 2)
        # Rounded to the dtype of tiles, so that what is near a mean differs from it by a number without rounding.
        a0, g0 = (factor.mean(0, dtype=torch.float64).to(dtype).double() for factor in (a, g))
        batch = deviations(KernelBatch([a], [g], [0.0], [False], [1]), [a0], [g0])
        forward, backward = batch.forward[0], batch.backward[0]
        n, _, o, m = backward.shape
        q = g0.new_empty(n, o, o)
        for rows in plain.steps(n, plain.chunk_elements(backward), o * m):
            q[rows] = backward[rows, 1].double() @ g0[0].T
        p = forward[:, 0].double() @ a0[0]
        scale = finite(scales.kernel)
        return cls(Layer(forward, backward, 0.0, False), a0.square().sum(), p, g0[0] @ g0[0].T, q, scale)

    @property
    def parts(self) -> Layer:
        """The layer of the factors a' [n, 1, d] and g' [n, 1, o, m]."""
        return Layer(self.deviations.forward[:, :1], self.deviations.backward[:, 1:], 0.0, False)

    @cached_property
    def row_means(self) -> Tensor:
        """The means of the rows (r, i) of T over the columns of output j, float64 [n, o, o]."""
        n, o, _ = self.q.shape
        blocks = torch.eye(o, dtype=torch.float64, device=self.q.device).expand(n, o, o)
        layer = self.deviations
        return plain.tangent_product(KernelBatch([layer.forward], [layer.backward], [0.0], [False], [1]), blocks) / n

    @property
    def h(self) -> Tensor:
        """h, float64 [n, o, o]."""
        p = self.p[:, None, None]
        return (self.p0 + p) * self.q + self.q0 * p

    @property
    def constant(self) -> Tensor:
        """p0 q0, float64 [o, o]."""
        return self.p0 * self.q0


class TileOffsets(NamedTuple):
    """What the tiles of T take beside the Grams of deviations, float32 (csrc/cuda/near_constant.cuh), and their unit.

    Attributes:
        p: [rows], p of each row's sample.
        pairs: [o, rows, 2], at [j, (r, i)] what the Gram of a' is multiplied by in every sample, and q_r,ij.
        factors: [3], lambda, kappa and what the Gram of g' is multiplied by in every sample.
        unit: What the numbers of the tiles are to be multiplied by, a float64 scalar.
    """

    p: Tensor
    pairs: Tensor
    factors: Tensor
    unit: Tensor

    @classmethod
    def of(cls, kernel: NearConstant, sizes: Tensor, rows: int) -> TileOffsets:
        """The offsets for rows of K in whole tiles where a' and g' are divided by alpha and beta, sizes [2]."""
        n, o, _ = kernel.q.shape
        t = sizes.amax()
        t = t.masked_fill(t == 0, 1.0)
        shares = sizes / t
        squares = shares.square()
        x = (kernel.q0 * squares[0]).float()
        pairs = torch.stack((x.expand(n, o, o), (kernel.q / t).float()), 3)  # [r, i, j, 2]
        padding = rows - n * o
        return cls(
            functional.pad((kernel.p / t).float().repeat_interleave(o), (0, padding)),
            functional.pad(pairs.flatten(0, 1).transpose(0, 1), (0, 0, 0, padding)).contiguous(),
            torch.cat((sizes * shares, kernel.p0 * squares[1:])).float(),
            t**2,
        )


def per_output(of_tiles: Tensor, kernels: list[NearConstant]) -> Tensor:
    """The inner products [2, q, q] of kernels centered as a whole and per output, from those [q, q] of their T."""
    n = len(kernels[0].p)
    found = of_tiles - 2 * n * _products([kernel.row_means for kernel in kernels])
    found += n**2 * _products([kernel.row_means.mean(0) for kernel in kernels])
    parts = []
    for kernel in kernels:
        h = kernel.h
        of_samples = kernel.row_means + h
        block = kernel.row_means.mean(0) + h.mean(0) + h.mean(0).T + kernel.constant
        parts.append((of_samples - of_samples.mean(0), block))
    return without_scales(torch.stack((found + plain.between_outputs(parts), found)), _scales(kernels))


def less_row_means(of_tiles: Tensor, kernels: list[NearConstant], row_means: list[Tensor]) -> Tensor:
    """The inner products [q, q] of kernels over one output less means [n, 1] of rows, from those of their T."""
    n = len(kernels[0].p)
    sums, offsets = [], []  # of the rows of T, and what is added to the entries of a row and of a column of T
    for kernel, given in zip(kernels, row_means, strict=True):
        mean = given[:, 0] * kernel.scale
        sums.append(n * kernel.row_means[:, 0, 0])
        offsets.append(kernel.h[:, 0, 0] + kernel.constant[0] / 2 - (mean - mean.mean() / 2))
    s, r = torch.stack(sums), torch.stack(offsets)
    cross = s @ r.T
    totals = r.sum(1)
    found = of_tiles + 2 * (cross + cross.T) + 2 * n * r @ r.T + 2 * torch.outer(totals, totals)
    return without_scales(found, _scales(kernels))


def _scales(kernels: list[NearConstant]) -> Tensor:
    return torch.stack([kernel.scale for kernel in kernels])


def _products(tensors: list[Tensor]) -> Tensor:
    rows = torch.stack([one.flatten() for one in tensors])
    return rows @ rows.T
