"""How a layer with several positions is contracted: by pairs of positions, or by its Jacobian.

A layer that is used s times (calls times positions) has K = sum over pairs (s, s') of P o Q. Pairs cost
s^2 n^2 (d + e m) multiply-adds where a pair of samples has e entries of Q. The Jacobian sum_s g_s a_s^T, m (d + b)
numbers for each of r outputs, costs n r s m d and then n^2 e m (d + b). The choice is a function of the shapes alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def takes_jacobian(n: int, r: int, e: int, s: int, d: int, m: int, *, bias: bool) -> bool:
    """Whether the Jacobian is the cheaper route."""
    if s == 1:
        return False
    return n * r * s * m * d + n**2 * e * m * (d + bias) < s**2 * n**2 * (d + e * m)


def jacobian(a: Tensor, g: Tensor, *, bias: bool) -> Tensor:
    """sum_s g_s a_s^T, and with a bias sum_s g_s beside it: [r, n, m * (d + b)] of a [n, s, d] and g [r, n, s, m]."""
    weight = torch.einsum("rnsm,nsd->rnmd", g, a).flatten(2)
    return torch.cat((weight, g.sum(2)), 2) if bias else weight
