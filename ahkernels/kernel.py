"""The tangent kernel of a layer as an operator: nothing of it is computed before it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ahkernels import ops
from ahkernels.factors import Factors
from ahkernels.outputs import OutputSelection
from ahkernels.precision import resolve_precision

# Largest kernel that to_dense() makes unasked: 46,341 rows in fp32.
MAX_DENSE_BYTES = 8 << 30


class TangentKernel:
    """K [n*o, n*o] of one layer, row (x, i) at index x*o + i, symmetric positive semi-definite.

    K[(x, i), (x', j)] = sum over pairs of uses (s, s') of (<a_s(x), a_s'(x')> + b) <g_s^i(x), g_s'^j(x')>: the
    Hadamard product of forward and backward Gram (equation 9 of the paper, there for one output and no bias).

    Args:
        factors: Of the layer; with n x n kernels ("trace", "sum") already those of a single output.
        outputs: What the rows are, by default all outputs.
        precision: See `resolve_precision`.
    """

    def __init__(self, factors: Factors, outputs: OutputSelection | None = None, precision: str | None = None) -> None:
        self.factors = factors
        self.outputs = OutputSelection("all", factors.o) if outputs is None else outputs
        rows = 1 if self.outputs.per_sample else len(self.outputs.indices)
        if rows != factors.o:
            raise ValueError(f"outputs: expected {factors.o} rows for each sample, as in factors, got {rows}")
        self.precision = resolve_precision(precision)
        self._row_means: Tensor | None = None

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.factors.n

    @property
    def o(self) -> int:
        """Rows for each sample."""
        return self.factors.o

    @property
    def shape(self) -> torch.Size:
        """(n*o, n*o)."""
        return torch.Size((self.n * self.o, self.n * self.o))

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return self.factors.forward.device

    @property
    def dtype(self) -> torch.dtype:
        """Of `to_dense()`: float64 for float64 factors, else float32."""
        return torch.float64 if self.factors.forward.dtype == torch.float64 else torch.float32

    def __repr__(self) -> str:
        """Shape, outputs and layer in one line."""
        layer = f"{self.factors.layer!r}, " if self.factors.layer else ""
        return f"TangentKernel({layer}shape={tuple(self.shape)}, outputs={self.outputs.spec!r}, dtype={self.dtype})"

    def __matmul__(self, v: Tensor) -> Tensor:
        """K v in float64 on the kernel's device, from the factors alone.

        Args:
            v: [n*o] or [n*o, columns].

        Raises:
            ValueError: for another shape.
        """
        if v.dim() not in (1, 2) or v.shape[0] != self.shape[0]:
            raise ValueError(f"v: expected shape [{self.shape[0]}] or [{self.shape[0]}, columns], got {list(v.shape)}")
        return self.product(v.reshape(self.n, self.o, -1)).reshape(v.shape)

    def product(self, v: Tensor) -> Tensor:
        """K v for v [n, o, columns], float64 [n, o, columns] on the kernel's device."""
        v = v.detach().to(self.device, torch.float64).contiguous()
        return ops.tangent_product(*self._arguments(), v)

    def row_means(self) -> Tensor:
        """Mean of each row of K, float64 [n, o] on the kernel's device; computed once."""
        if self._row_means is None:
            self._row_means = ops.tangent_row_sums(*self._arguments()) / self.shape[0]
        return self._row_means

    def frobenius_norm(self, *, centered: bool = True) -> float:
        """||C K C||_F with C = I - 11^T/(on), or ||K||_F; in one pass over tiles, with no K in memory."""
        means = self.row_means() if centered else torch.zeros(self.n, self.o, dtype=torch.float64)
        return math.sqrt(float(centered_moments([self], [means.to(self.device)])))

    def diagonal(self) -> Tensor:
        """float64 [n*o] on the kernel's device."""
        return ops.tangent_diagonal(*self._arguments()).flatten()

    def trace(self) -> float:
        """Sum of the diagonal, that is of all eigenvalues."""
        return float(self.diagonal().sum())

    def to_dense(self, *, max_bytes: int = MAX_DENSE_BYTES) -> Tensor:
        """K itself, [n*o, n*o] on the kernel's device, exactly symmetric.

        Raises:
            MemoryError: where K takes more than `max_bytes`.
            OverflowError: where an entry is beyond the range of float32.
        """
        size = self.shape[0] ** 2 * self.dtype.itemsize
        if size > max_bytes:
            raise MemoryError(
                f"to_dense: K [{self.shape[0]}, {self.shape[0]}] takes {size / 2**30:.1f} GiB, more than max_bytes = "
                f"{max_bytes / 2**30:.1f} GiB; K @ v, frobenius_norm() and ahkernels.cka() need no K in memory"
            )
        largest = float(self.diagonal().max())  # of all entries: K is positive semi-definite
        if largest > torch.finfo(self.dtype).max:
            raise OverflowError(
                f"to_dense: the largest entry of K, {largest:.3g}, is beyond the range of {self.dtype}; use a "
                "float64 model"
            )
        return ops.tangent_gram(*self._arguments(), self.precision)

    def _arguments(self) -> tuple[Tensor, Tensor, float]:
        return self.factors.forward.detach(), self.factors.backward.detach(), float(self.factors.bias)

    def forward_gram(self) -> TangentKernel:
        """P [n, n] = sum over pairs of uses of <a_s(x), a_s'(x')> + b: the kernel under unit output gradients."""
        a = self.factors.forward
        ones = a.new_ones(1).expand(a.shape[0], a.shape[1], 1, 1)
        return TangentKernel(
            Factors(a, ones, self.factors.bias, f"{self.factors.layer} (forward Gram)", unchecked=True),
            OutputSelection("trace", self.outputs.total),
            self.precision,
        )

    def backward_gram(self) -> TangentKernel:
        """Q [n*o, n*o] = sum over pairs of uses of <g_s^i(x), g_s'^j(x')>: the tangent kernel of a bias."""
        g = self.factors.backward
        return TangentKernel(
            Factors(g.new_empty(*g.shape[:2], 0), g, True, f"{self.factors.layer} (backward Gram)", unchecked=True),
            self.outputs,
            self.precision,
        )


def kernel_of_outputs(factors: Factors, outputs: OutputSelection, precision: str) -> TangentKernel:
    """The kernel of captured factors [n, s, r, m]; for "trace", the outputs' gradients become one of o*m numbers."""
    if outputs.spec == "trace":
        g = factors.backward
        g = g.reshape(g.shape[0], g.shape[1], 1, -1)
        factors = Factors(factors.forward, g, factors.bias, factors.layer, unchecked=True)
    return TangentKernel(factors, outputs, precision)


def statistics(kernels: Sequence[TangentKernel], v: Tensor) -> Tensor:
    """<v, K v>, ||C K C||_F^2, trace and sum of kernels over the same rows for a centered v [n, o], float64 [q, 4].

    On their device, in one pass over their tiles.
    """
    forward, backward, bias = zip(*(kernel._arguments() for kernel in kernels), strict=True)
    v = v.detach().to(kernels[0].device, torch.float64).contiguous().unsqueeze(2)
    return ops.tangent_statistics(forward, backward, bias, v, kernels[0].precision)


def centered_moments(kernels: Sequence[TangentKernel], row_means: list[Tensor]) -> Tensor:
    """<C K_a C, C K_b C>_F of kernels over the same rows, float64 [q, q] on their device."""
    forward, backward, bias = zip(*(kernel._arguments() for kernel in kernels), strict=True)
    return ops.centered_moments(forward, backward, bias, row_means, kernels[0].precision)
