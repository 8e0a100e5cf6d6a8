"""Products with the tangent features Psi_l [P_l, n*o] of a layer, the transpose of its Jacobian, from its factors.

A layer's P_l parameters are its weight [m, d], row by row, and then its bias [m] if it has one: for linear layers and
convolutions, as their own parameters lie in memory. A layer without a forward factor has its Jacobian as backward
factor; its parameters are the m columns of that Jacobian.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ahkernels.factors import LayerFactors
from ahkernels.ops.plain import chunk_elements


def parameters(factors: LayerFactors) -> int:
    """P_l, the number of parameters of the layer.

    Raises:
        ValueError: If there is only a square root of its kernel.
    """
    if factors.root is not None:
        raise ValueError(
            f"kernel: expected the factors or the Jacobian of layer {factors.layer!r}, got a square root of its "
            "kernel, which took their place: a table that is an embedding and the weight of a linear layer has no "
            "other, and any other layer has with a larger memory_budget or keep_factors=True"
        )
    return factors.backward.shape[3] * (factors.forward.shape[2] + factors.bias)


def vjp(factors: LayerFactors, v: Tensor) -> Tensor:
    """Psi_l v = J_l^T v, float64 [P_l, columns], for v [n, o, columns] in float64."""
    (d, m), columns = (factors.forward.shape[2], factors.backward.shape[3]), v.shape[2]
    found = v.new_zeros(columns, parameters(factors))
    weight, bias = found[:, : m * d].view(columns, m, d), found[:, m * d :]
    for now, a, g in _in_chunks(factors, columns):
        h = torch.einsum("xsim,xiv->xsvm", g, v[now])
        weight += torch.einsum("xsvm,xsd->vmd", h, a)
        if factors.bias:
            bias += h.sum((0, 1))
    return found.T


def jvp(factors: LayerFactors, u: Tensor) -> Tensor:
    """Psi_l^T u = J_l u, float64 [n, o, columns], for u [P_l, columns] in float64."""
    (d, m), columns = (factors.forward.shape[2], factors.backward.shape[3]), u.shape[1]
    weight = u[: m * d].T.reshape(columns, m, d)
    bias = u[m * d :].T if factors.bias else u.new_zeros(columns, m)
    found = u.new_zeros(factors.n, factors.o, columns)
    for now, a, g in _in_chunks(factors, columns):
        change = torch.einsum("vmd,xsd->xsvm", weight, a) + bias
        found[now] = torch.einsum("xsim,xsvm->xiv", g, change)
    return found


def _in_chunks(factors: LayerFactors, columns: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """A few samples at a time, with their factors a [chunk, s, d] and g [chunk, s, o, m] in float64."""
    a, g = factors.forward.detach(), factors.backward.detach()
    (s, d), (o, m) = a.shape[1:], g.shape[2:]
    step = max(1, chunk_elements(g) // (s * max(d, max(o, columns) * m, 1)))
    for begin in range(0, len(a), step):
        now = slice(begin, begin + step)
        yield now, a[now].double(), g[now].double()
