"""How a layer with several positions is contracted: by pairs of positions, or through its Jacobian.

A layer whose uses have s positions together has K = sum over pairs (s, s') of P o Q. By pairs, K costs
s^2 n^2 (d + e m) multiply-adds where a pair of samples has e entries of Q, or half of that, since K is symmetric. The
Jacobian sum_s g_s a_s^T has m (d + b) numbers for each of r cotangents. It costs n r s m d multiply-adds to form, and
then K costs n^2 e m (d + b). There are two ways to have the Jacobian. Either it is formed once, as the layer is
captured, and kept instead of the factors; or, where the factors are smaller, the factors are kept and a slice of the
Jacobian at a time is formed from them, again for each block of samples. The choice depends on the shapes and the memory
budget alone: it is the cheapest of the routes that fit the budget, and of two that cost the same, the one that holds
less.

Where none fits, the layer is cut. The route that holds least is then taken by one block of samples at a time, and each
pair of blocks gives a part of K; of a layer without a rule, whose Jacobian comes from the model itself, slices of the
Jacobian are summed up to K. A square root of K is kept as if it were the Jacobian. Where K is too large for that, the
route that holds least is taken by the whole layer after all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ahkernels.ops.build import TILING

RouteName: TypeAlias = Literal["factors", "pairs", "jacobian", "jacobian slices", "root", "tied"]

# Rows of K that are computed together where the Jacobian comes in slices.
_BLOCK_ROWS = TILING["block_rows_in_memory"]

# The numbers that a root of K takes for each of its entries: K itself in float64, its eigenvectors and their workspace.
_NUMBERS_OF_ROOT = 10

# The cost, in flops, of writing, scaling, packing and reading one number of a factor or Jacobian: about 20 bytes, at
# the 20 flops for each byte that processors are balanced for (benchmarks/routes.py).
_FLOPS_PER_NUMBER = 400


@dataclass(frozen=True)
class Shape:
    """The sizes that the cost of a layer depends on.

    Attributes:
        n: The number of samples.
        r: The number of cotangents.
        e: Entries of the backward Gram that enter K for each pair of samples.
        s: Positions of all uses together.
        d: The length of the forward factor at one position.
        m: The length of the backward factor at one position, for one cotangent.
        bias: Whether b = 1 is added to the forward Gram.
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
        """Numbers in the Jacobian of one sample and cotangent."""
        return self.m * (self.d + self.bias)


@dataclass(frozen=True)
class Route:
    """A way to the kernel and what it costs.

    Attributes:
        name: "factors" for one position. For several: "pairs" (by pairs of positions), "jacobian" (the Jacobian is kept
            instead of the factors) or "jacobian slices" (the Jacobian is formed from kept factors, slice by slice). For
            a layer without a rule: "jacobian". For a layer that is cut: "root" (a square root of K). For a table that
            is an embedding and the weight of a linear layer: "tied" (a square root of K, too).
        flops: Floating-point operations from what is captured to K on and below its diagonal, two for each
            multiply-add.
        numbers: The count of numbers that are kept of the layer.
        moved: The count of numbers that are written, packed and read on the way.
        of_parts: The route of the parts that a layer is cut into; None if it is not.
    """

    name: RouteName
    flops: int
    numbers: int
    moved: int
    of_parts: Route | None = None

    @property
    def cost(self) -> int:
        """Flops, with the moved numbers counted as flops too."""
        return self.flops + _FLOPS_PER_NUMBER * self.moved


def routes(shape: Shape) -> list[Route]:
    """Lists all ways to the kernel of a layer with a forward factor."""
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


def choose_route(shape: Shape, most_numbers: int, budget: int, *, keep_factors: bool = False) -> Route:
    """Chooses the cheapest route that fits; if none fits, a root of K, or else the route that holds least.

    Args:
        shape: The sizes of the layer.
        most_numbers: How many numbers may be kept of the layer.
        budget: How many numbers may be held at all.
        keep_factors: Whether the factors are needed, so that neither the Jacobian nor a root can be kept instead.
    """
    found = [route for route in routes(shape) if not (keep_factors and route.name == "jacobian")]
    fitting = [route for route in found if route.numbers <= most_numbers]
    if fitting:
        # Of two at one cost, the one that holds less: more layers fit one pass over the model then.
        return min(fitting, key=lambda route: (route.cost, route.numbers))
    least = min(found, key=lambda route: (route.numbers, route.cost))
    return least if keep_factors else _or_root(least, shape.n * shape.r, budget)


def fallback_route(
    n: int, r: int, e: int, parameters: int, most_numbers: int, budget: int, *, tied: bool = False
) -> Route:
    """Chooses the route of a layer without a rule: a root of K where its Jacobian is too large and K is small.

    Args:
        n: The number of samples.
        r: The number of cotangents.
        e: Entries of K for each pair of samples.
        parameters: Numbers in the Jacobian of one sample and cotangent.
        most_numbers: How many numbers may be kept of the layer.
        budget: How many numbers may be held at all.
        tied: Whether it is a tied table, whose K comes from the factors of its uses where it is small. The flops are
            those of a Jacobian, and not as many.
    """
    formed = n * r * parameters
    whole = Route("jacobian", n**2 * e * parameters, formed, formed)
    if tied:
        root = _or_root(whole, n * r, budget)
        return root if root is whole else replace(root, name="tied", of_parts=None)
    return whole if formed <= most_numbers else _or_root(whole, n * r, budget)


def _or_root(whole: Route, rows: int, budget: int) -> Route:
    """A root of K with so many rows if the budget has room for it, or else a route that does not fit either."""
    root = rows**2
    if _NUMBERS_OF_ROOT * root > budget:
        return whole
    return Route("root", whole.flops, root, whole.moved, whole)


def jacobian(a: Tensor, g: Tensor, *, bias: bool) -> Tensor:
    """Computes sum_s g_s a_s^T and, with a bias, sum_s g_s beside it.

    Args:
        a: The forward factor [n, s, d].
        g: The backward factor [r, n, s, m] for r cotangents.
        bias: Whether the layer has a bias.

    Returns:
        The Jacobian [r, n, m * (d + b)] with b = 1 for a bias and 0 without.
    """
    (r, n, _, m), d = g.shape, a.shape[2]
    found = a.new_empty(r, n, m * (d + bias))
    for row, gradient in zip(found, g, strict=True):  # one cotangent at a time, since all at once would copy g
        torch.bmm(gradient.mT, a, out=row[:, : m * d].view(n, m, d))
        if bias:
            torch.sum(gradient, 1, out=row[:, m * d :])
    return found
