"""The ops on the factors of one layer of a given shape, and the least number of flops that each of them takes.

Flops are two for each multiply-add, and half of a symmetric matrix counts. Where products with few vectors can go
through the parameters or through the forward Gram (csrc/cpu/tiles/thin_products.h), the cheaper way counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ahkernels import ops
from ahkernels.ops import KernelBatch


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
        """a [n, s, d] and g [n, s, o, m], with entries around 1/2 and 0, as in a layer behind a ReLU."""
        generator = torch.Generator().manual_seed(0)
        forward = torch.rand(self.n, self.s, self.d, generator=generator, dtype=self.dtype)
        backward = torch.randn(self.n, self.s, self.o, self.m, generator=generator, dtype=self.dtype)
        return forward, backward

    @cached_property
    def batch(self) -> KernelBatch:
        """The kernel of these factors and a bias."""
        a, g = self.factors
        return KernelBatch([a], [g], [1.0], [self.by_jacobian], [1])

    def jobs(self) -> dict[str, tuple[Callable[[], object], float]]:
        """Op name -> the op on these factors, and its flops; vectors are one column."""
        batch = self.batch
        v = torch.linspace(-1, 1, self.n * self.o, dtype=torch.float64).view(self.n, self.o, 1)
        means = ops.tangent_row_sums(batch) / (self.n * self.o)
        square, product = self.square_flops(), self.product_flops(passes=2)
        return {
            "centered_inner_products": (lambda: ops.centered_inner_products(batch, [means], "highest"), square),
            **self.jobs_of_several_outputs(v, square),
            "tangent_gram": (lambda: ops.tangent_gram(batch, "highest"), square),
            "tangent_product": (lambda: ops.tangent_product(batch, v), product),
            "tangent_cross_product": (lambda: ops.tangent_cross_product(batch, batch, v), product),
            "tangent_row_sums": (lambda: ops.tangent_row_sums(batch), product),
            "tangent_quadratic": (lambda: ops.tangent_quadratic(batch, v), self.product_flops(passes=1)),
            "tangent_diagonal": (lambda: ops.tangent_diagonal(batch), self.diagonal_flops()),
        }

    def jobs_of_several_outputs(self, v: Tensor, flops: float) -> dict[str, tuple[Callable[[], object], float]]:
        """The ops that are for kernels over several outputs; with one output there are none."""
        if self.o == 1:
            return {}
        batch = self.batch
        return {
            "tangent_moments": (lambda: ops.tangent_moments(batch, v, "highest"), flops),
            "per_output_inner_products": (lambda: ops.per_output_inner_products(batch, "highest"), flops),
            "tangent_moments, per output": (lambda: ops.tangent_moments(batch, v, "highest", per_output=True), flops),
        }

    def square_flops(self) -> float:
        """Flops of all entries of K on and below its diagonal."""
        rows = self.n * self.o
        if self.by_jacobian:
            return 2 * rows * self.s * self.m * self.d + rows**2 * self.m * self.d
        return self.s**2 * (self.n**2 * self.d + rows**2 * self.m)

    def product_flops(self, passes: int) -> float:
        """Flops of K v, and with one pass over the samples those of v^T K v."""
        rows = self.n * self.s
        through_parameters = passes * 2 * rows * self.d * self.m
        through_gram = rows**2 * self.d + 2 * rows**2 * self.m
        return passes * 2 * rows * self.o * self.m + min(through_parameters, through_gram)

    def diagonal_flops(self) -> float:
        """Flops of the diagonal of K, from the rows of the Jacobian or from the pairs of positions of each sample."""
        if self.by_jacobian:
            return 2 * self.n * self.o * self.m * self.d * (self.s + 1)
        return self.n * self.s * (self.s + 1) * (self.d + self.o * self.m)
