"""Leave-one-out estimates of the squared Frobenius norm of a symmetric operator from products with random vectors.

With an orthonormal basis Q, R = I - Q Q^T and a random vector w that Q does not depend on, an operator A has

    ||A||_F^2 = 2 ||A Q||_F^2 - ||Q^T A Q||_F^2 + ||R A R||_F^2   and   E ||R A R w||^2 = ||R A R||_F^2.

Where Q is made of A times other random vectors, it holds most of the largest eigenvectors, and little is left to
estimate (Hutch++: Meyer, Musco, Musco and Woodruff, 2021). Each random vector can be the w of one estimate, with all
others in Q: then the mean of the estimates is as good as with half as many products again (XTrace: Epperly, Tropp and
Webber, 2024). All of them come from matrices [k, k] beside the products.

The estimates T_i are unbiased, but not independent. T_i without w_j in its basis, too, is T_ij, which knows nothing of
w_j, so that E (T_i - T_ij) (T_j - T_ji) = Cov(T_i, T_j), and the variance of the mean is the usual one plus the mean of
these products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ahkernels.kernel_operator import Product
from ahkernels.samples import Samples

# Of the largest diagonal entry of a triangular factor: what is smaller is rounding.
_ROUNDING = 1e-15


class SquaredNorm(NamedTuple):
    """An estimate of ||A||_F^2 and its standard error, the square root of an unbiased estimate of its variance."""

    value: float
    standard_error: float


class Sketch:
    """Products of a symmetric operator A with k random vectors W, and with a basis of what they give.

    Args:
        product: A times vectors, float64 [rows, columns].
        random: Makes random vectors [rows, columns] with independent standard normal entries.
        samples: The samples that the rows belong to.
    """

    def __init__(self, product: Product, random: Callable[[int], Tensor], samples: Samples) -> None:
        self._product, self._random, self._samples = product, random, samples
        nothing = random(0)
        self._vectors, self._basis, self._image = nothing, nothing, nothing  # W, Q and A Q [rows, k]
        self._triangle = nothing.new_zeros(0, 0)  # A W = Q R

    @property
    def size(self) -> int:
        """k, the number of random vectors; twice as many products have been taken."""
        return self._vectors.shape[1]

    def grow(self, size: int) -> None:
        """Takes more random vectors, until there are so many."""
        more = self._random(size - self.size)
        rest = self._product(more)
        inside = rest.new_zeros(self.size, more.shape[1])
        for _ in range(2):
            parts = self._samples.inner(self._basis, rest)
            rest = rest - self._basis @ parts
            inside += parts
        basis, triangle = self._samples.orthonormal(rest)
        below = rest.new_zeros(more.shape[1], self.size)
        self._triangle = torch.cat((torch.cat((self._triangle, inside), 1), torch.cat((below, triangle), 1)))
        self._vectors = torch.cat((self._vectors, more), 1)
        self._basis = torch.cat((self._basis, basis), 1)
        self._image = torch.cat((self._image, self._product(basis)), 1)

    def squared_norm(self) -> SquaredNorm:
        """The mean of the leave-one-out estimates."""
        size, inner = self.size, self._samples.inner
        estimates = _Estimates(
            inner(self._basis, self._vectors),
            self._triangle,
            inner(self._basis, self._image),
            inner(self._image, self._image),
        )
        left_out = estimates.directions  # what is not in the basis of each estimate
        values = estimates.values(left_out[None])
        changes = values.new_zeros(size, size)  # T_i - T_ij
        for j in range(size):
            second = left_out[:, j : j + 1] - left_out * (left_out[:, j] @ left_out)
            second[:, j] = 0
            second /= second.norm(dim=0).clamp(min=torch.finfo(second.dtype).tiny)
            changes[:, j] = values - estimates.values(torch.stack((left_out, second)))
        changes.fill_diagonal_(0)
        numbers = (values.mean(), values.var(), (changes * changes.T).sum() / (size * (size - 1)))
        mean, variance, covariance = torch.stack(numbers).tolist()
        return SquaredNorm(mean, math.sqrt(variance / size + max(covariance, 0.0)))


class _Estimates:
    """The leave-one-out estimates from small matrices.

    Args:
        vectors: Q^T W [k, k].
        triangle: R [k, k] with A W = Q R.
        inside: Q^T A Q [k, k].
        of_image: (A Q)^T A Q [k, k].

    Attributes:
        directions: [k, k]; column i is the direction of Q, in its coordinates, that is lost without w_i.
    """

    def __init__(self, vectors: Tensor, triangle: Tensor, inside: Tensor, of_image: Tensor) -> None:
        self._w, self._r = vectors, triangle
        self._h = (inside + inside.T) / 2
        self._g = of_image
        diagonal = triangle.diagonal().abs()
        least = (_ROUNDING * diagonal.max()).clamp(min=torch.finfo(diagonal.dtype).tiny)
        solvable = triangle + ((diagonal < least).to(diagonal) * least).diag()
        identity = torch.eye(len(triangle), dtype=triangle.dtype, device=triangle.device)
        inverse = torch.linalg.solve_triangular(solvable, identity, upper=True)
        self.directions = (inverse / inverse.norm(dim=1, keepdim=True)).T

    def values(self, left_out: Tensor) -> Tensor:
        """T_i [k] of each random vector, for a basis without some orthonormal directions, [directions, k, k]."""
        hd, gd = self._h @ left_out, self._g @ left_out
        along = (left_out * self._w).sum(1, keepdim=True)
        w = self._w - (left_out * along).sum(0)
        hw = self._h @ w
        rest = self._r - hw
        rest = rest - (left_out * (left_out * rest).sum(1, keepdim=True)).sum(0)  # of A R w, inside of the basis
        squares = self._r.square().sum(0) - 2 * (self._r * hw).sum(0) + (w * (self._g @ w)).sum(0)
        outside = (squares - rest.square().sum(0)).clamp(min=0)
        corner = torch.einsum("akt,bkt->abt", left_out, hd).square().sum((0, 1))
        of_image = self._g.trace() - (left_out * gd).sum((0, 1))
        of_inside = self._h.square().sum() - 2 * hd.square().sum((0, 1)) + corner
        return 2 * of_image - of_inside + outside
