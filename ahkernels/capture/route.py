"""How a layer with several positions is contracted: by pairs of positions, or by its Jacobian.

A layer that is used s times (calls times positions) has K = sum over pairs (s, s') of P o Q. Pairs cost
s^2 n^2 (d + e m) multiply-adds where a pair of samples has e entries of Q. The Jacobian sum_s g_s a_s^T, m (d + b)
numbers for each of r outputs, costs n r s m d and then n^2 e m (d + b). The choice is a function of the shapes and of
the memory budget alone: the cheaper route of those that fit it, or the smaller one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pairs_cost(n: int, r: int, e: int, s: int, d: int, m: int) -> tuple[int, int]:
    """Multiply-adds, and numbers held, by pairs of positions (or of a layer with a single one)."""
    return s**2 * n**2 * (d + e * m), n * s * (d + r * m)


def jacobian_cost(n: int, r: int, e: int, s: int, d: int, m: int, *, bias: bool) -> tuple[int, int]:
    """Multiply-adds, and numbers held, by the Jacobian."""
    parameters = m * (d + bias)
    return n * r * s * m * d + n**2 * e * parameters, n * r * parameters


def takes_jacobian(n: int, r: int, e: int, s: int, d: int, m: int, *, bias: bool, most_numbers: int) -> bool:
    """Whether to go by the Jacobian, where `most_numbers` fit the memory budget."""
    if s == 1:
        return False
    by_pairs, by_jacobian = pairs_cost(n, r, e, s, d, m), jacobian_cost(n, r, e, s, d, m, bias=bias)
    what = 1 if max(by_pairs[1], by_jacobian[1]) > most_numbers else 0
    return by_jacobian[what] < by_pairs[what]


def jacobian(a: Tensor, g: Tensor, *, bias: bool) -> Tensor:
    """sum_s g_s a_s^T, and with a bias sum_s g_s beside it: [r, n, m * (d + b)] of a [n, s, d] and g [r, n, s, m]."""
    weight = torch.einsum("rnsm,nsd->rnmd", g, a).flatten(2)
    return torch.cat((weight, g.sum(2)), 2) if bias else weight
