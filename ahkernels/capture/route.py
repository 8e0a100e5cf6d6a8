"""How a layer with several positions is contracted: by pairs of positions, or through its Jacobian.

A layer that is used s times (calls times positions) has K = sum over pairs (s, s') of P o Q. Pairs cost
s^2 n^2 (d + e m) multiply-adds where a pair of samples has e entries of Q (half of that, K being symmetric). The
Jacobian sum_s g_s a_s^T, m (d + b) numbers for each of r outputs, costs n r s m d and then n^2 e m (d + b). It is
formed once, as the layer is captured, and kept instead of the factors; or, where the factors are smaller, a slice of
the parameters at a time from kept factors, again for each block of samples. The choice is a function of the shapes and
of the memory budget alone: the cheapest route of those that fit it, or else the one that holds least.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

RouteName: TypeAlias = Literal["factors", "pairs", "jacobian", "jacobian slices"]

# Samples whose rows of K are computed together where the Jacobian comes in slices, for 10 outputs: see kKeptBytes in
# csrc/cpu/tile_walk.h.
_BLOCK_ROWS = 5760

# What it costs to write, scale, pack and read a number of a factor or of a Jacobian beside its products, in flops:
# about 20 bytes at the 20 flops for each byte that processors are balanced for (benchmarks/routes.py).
_FLOPS_PER_NUMBER = 400


@dataclass(frozen=True)
class Shape:
    """What the cost of a layer depends on.

    Attributes:
        n: Samples.
        r: Cotangents.
        e: Entries of the backward Gram for each pair of samples.
        s: Positions.
        d: Length of the forward factor.
        m: Length of the backward factor.
        bias: Whether there is a bias term.
    """

    n: int
    r: int
    e: int
    s: int
    d: int
    m: int
    bias: bool

    @property
    def parameters(self) -> int:
        """Numbers in the Jacobian for each output."""
        return self.m * (self.d + self.bias)


@dataclass(frozen=True)
class Route:
    """A way to the kernel and what it costs.

    Attributes:
        name: "factors" (a single position), "pairs" (of positions), "jacobian" (kept instead of the factors) or
            "jacobian slices" (of kept factors).
        flops: From what is captured to K on and below its diagonal, two for each multiply-add.
        numbers: Held of the layer.
        moved: Numbers that are written, packed and read on the way.
    """

    name: RouteName
    flops: int
    numbers: int
    moved: int

    @property
    def cost(self) -> int:
        """In flops."""
        return self.flops + _FLOPS_PER_NUMBER * self.moved


def routes(shape: Shape) -> list[Route]:
    """All ways to the kernel of a layer with a forward factor."""
    n, r, e, s, d, m = shape.n, shape.r, shape.e, shape.s, shape.d, shape.m
    factors = n * s * (d + r * m)
    gram = n**2 * (d + e * m)
    if s == 1:
        return [Route("factors", gram, factors, factors)]
    forming, contraction = 2 * n * r * s * m * d, n**2 * e * shape.parameters
    blocks, formed = math.ceil(n * math.isqrt(e) / _BLOCK_ROWS), n * r * shape.parameters
    return [
        Route("pairs", s**2 * gram, factors, factors),
        Route("jacobian", forming + contraction, formed, factors + formed),
        Route("jacobian slices", blocks * forming + contraction, factors, factors + blocks * formed),
    ]


def choose_route(shape: Shape, most_numbers: int, *, keep_factors: bool = False) -> Route:
    """The cheapest of the routes that hold no more than so many numbers, or the one that holds least.

    With `keep_factors` the Jacobian does not stand in for them.
    """
    found = [route for route in routes(shape) if not (keep_factors and route.name == "jacobian")]
    fitting = [route for route in found if route.numbers <= most_numbers]
    if fitting:
        return min(fitting, key=lambda route: route.cost)
    return min(found, key=lambda route: (route.numbers, route.cost))


def jacobian(a: Tensor, g: Tensor, *, bias: bool) -> Tensor:
    """sum_s g_s a_s^T, and with a bias sum_s g_s beside it: [r, n, m * (d + b)] of a [n, s, d] and g [r, n, s, m]."""
    (r, n, _, m), d = g.shape, a.shape[2]
    found = a.new_empty(r, n, m * (d + bias))
    for output, gradient in zip(found, g, strict=True):  # by outputs, since all at once would copy g
        torch.bmm(gradient.mT, a, out=output[:, : m * d].view(n, m, d))
        if bias:
            torch.sum(gradient, 1, out=output[:, m * d :])
    return found
