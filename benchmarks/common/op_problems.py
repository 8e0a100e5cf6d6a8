"""The ops on the factors of one layer of a given shape, and the least number of flops that each of them takes.

Flops are two for each multiply-add, and half of a symmetric matrix counts. Where products with few vectors can go
through the parameters or through the forward Gram (csrc/cpu/thin.h), the cheaper way counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ahkernels import ops


@dataclass(frozen=True)
class OpProblem:
    """One layer: n samples, s positions, o outputs, factors of d and m numbers, contracted by pairs or Jacobian."""

    n: int
    o: int
    d: int
    m: int
    s: int = 1
    by_jacobian: bool = False
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        text = f"n {self.n}, o {self.o}, d {self.d}, m {self.m}"
        text += f", s {self.s} by {'Jacobian' if self.by_jacobian else 'pairs'}" if self.s > 1 else ""
        return text + (", fp64" if self.dtype == torch.float64 else "")

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor]:
        """a [n, s, d] and g [n, s, o, m], of entries around 1 and 0: those of a layer behind a ReLU."""
        generator = torch.Generator().manual_seed(0)
        forward = torch.rand(self.n, self.s, self.d, generator=generator, dtype=self.dtype)
        backward = torch.randn(self.n, self.s, self.o, self.m, generator=generator, dtype=self.dtype)
        return forward, backward

    def jobs(self) -> dict[str, tuple[Callable[[], Tensor], float]]:
        """Op name -> the op on these factors, and its flops; vectors are one column."""
        a, g = self.factors
        v = torch.linspace(-1, 1, self.n * self.o, dtype=torch.float64).view(self.n, self.o, 1)
        means = ops.tangent_row_sums(a, g, 1.0) / (self.n * self.o)
        many = [a], [g], [1.0]
        route = [self.by_jacobian]
        square, product = self.square_flops(), self.product_flops(passes=2)
        jobs: dict[str, tuple[Callable[[], Tensor], float]] = {
            "centered_moments": (lambda: ops.centered_moments(*many, [means], "highest", route), square),
            "tangent_statistics": (lambda: ops.tangent_statistics(*many, v, "highest", route), square),
            **self.per_output_jobs(v, square),
            "tangent_gram": (lambda: ops.tangent_gram(*many, "highest", route), square),
            "tangent_product": (lambda: ops.tangent_product(a, g, 1.0, v), product),
            "tangent_cross_product": (lambda: ops.tangent_cross_product(a, g, a, g, 1.0, v), product),
            "tangent_row_sums": (lambda: ops.tangent_row_sums(a, g, 1.0), product),
            "tangent_quadratic": (lambda: ops.tangent_quadratic(a, g, 1.0, v), self.product_flops(passes=1)),
            "tangent_diagonal": (lambda: ops.tangent_diagonal(a, g, 1.0, self.by_jacobian), self.diagonal_flops()),
        }
        return jobs

    def per_output_jobs(self, v: Tensor, flops: float) -> dict[str, tuple[Callable[[], Tensor], float]]:
        """Those of kernels whose blocks are centered by themselves; with one output there is one block."""
        if self.o == 1:
            return {}
        a, g = self.factors
        many, route = ([a], [g], [1.0]), [self.by_jacobian]
        return {
            "per_output_moments": (lambda: ops.per_output_moments(*many, "highest", route), flops),
            "tangent_statistics, per output": (
                lambda: ops.tangent_statistics(*many, v, "highest", route, [], True),
                flops,
            ),
        }

    def square_flops(self) -> float:
        """Of all entries of K on and below its diagonal."""
        rows = self.n * self.o
        if self.by_jacobian:
            return 2 * rows * self.s * self.m * self.d + rows**2 * self.m * self.d
        return self.s**2 * (self.n**2 * self.d + rows**2 * self.m)

    def product_flops(self, passes: int) -> float:
        """Of K v, and with one pass over the samples of v^T K v."""
        uses = self.n * self.s
        through_parameters = passes * 2 * uses * self.d * self.m
        through_gram = uses**2 * self.d + 2 * uses**2 * self.m
        return passes * 2 * uses * self.o * self.m + min(through_parameters, through_gram)

    def diagonal_flops(self) -> float:
        """Of the squares of the rows of the Jacobian, or of the pairs of positions of each sample."""
        if self.by_jacobian:
            return 2 * self.n * self.o * self.m * self.d * (self.s + 1)
        return self.n * self.s * (self.s + 1) * (self.d + self.o * self.m)
