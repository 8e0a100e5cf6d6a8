"""The tangent kernel of a layer, or of several, as an operator: nothing of it is computed before it is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from ahkernels import ops, tangent_features
from ahkernels.centering import Centering, center, require_centering
from ahkernels.factors import LayerFactors
from ahkernels.inner_products import _arguments, inner_products
from ahkernels.kernel_operator import KernelOperator, require_columns, require_tensor, scipy_operator
from ahkernels.outputs import OutputSelection
from ahkernels.precision import resolve_precision


class TangentKernel(KernelOperator):
    """K [n*o, n*o] of a layer or a group of layers, row (x, i) at index x*o + i, symmetric positive semi-definite.

    K[(x, i), (x', j)] = sum over pairs of uses (s, s') of (<a_s(x), a_s'(x')> + b) <g_s^i(x), g_s'^j(x')>: the
    Hadamard product of forward and backward Gram (equation 9 of the paper, there for one output and no bias). The
    kernel of a group of layers is the sum of theirs, since it is an inner product over all of their parameters.

    Args:
        factors: Of the layer, or of each layer of a group; with n x n kernels ("trace", "sum") already those of a
            single output.
        outputs: What the rows are, by default all outputs.
        precision: See `resolve_precision`.
        name: For messages; by default that of the layer.

    Attributes:
        terms: The factors of each layer.

    Raises:
        ValueError: where the factors do not fit each other or `outputs`.
    """

    def __init__(
        self,
        factors: LayerFactors | Sequence[LayerFactors],
        outputs: OutputSelection | None = None,
        precision: str | None = None,
        name: str | None = None,
    ) -> None:
        self.factors = (factors,) if isinstance(factors, LayerFactors) else tuple(factors)
        _require_one_shape(self.factors)
        first = self.factors[0]
        self.name = first.layer if name is None else name
        self.outputs = OutputSelection("all", first.o) if outputs is None else outputs
        rows = 1 if self.outputs.per_sample else len(self.outputs.indices)
        if rows != first.o:
            raise ValueError(f"outputs: expected {first.o} rows for each sample, as in factors, got {rows}")
        self.precision = resolve_precision(precision)
        self._row_means: Tensor | None = None

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.factors[0].n

    @property
    def o(self) -> int:
        """Rows for each sample."""
        return self.factors[0].o

    @property
    def shape(self) -> torch.Size:
        """(n*o, n*o)."""
        return torch.Size((self.n * self.o, self.n * self.o))

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return self.factors[0].forward.device

    @property
    def dtype(self) -> torch.dtype:
        """Of `to_dense()`: float64 for float64 factors, else float32."""
        return torch.float64 if self.factors[0].forward.dtype == torch.float64 else torch.float32

    def __repr__(self) -> str:
        """Shape, outputs and layer in one line."""
        name = f"{self.name!r}, " if self.name else ""
        return f"TangentKernel({name}shape={tuple(self.shape)}, outputs={self.outputs.spec!r}, dtype={self.dtype})"

    @property
    def T(self) -> TangentKernel:
        """The kernel itself, which is symmetric."""
        return self

    def _product(self, v: Tensor) -> Tensor:
        return self.product(v)

    def near_constant(self, centering: Centering | None) -> bool:
        """Whether what centering leaves can be so much smaller than K that fp32 has no digits of it.

        It can in every block of two outputs that is centered by itself: of kernels over samples alone, and per output.
        """
        return centering is not None and (self.o == 1 or centering == "per_output")

    def product(self, v: Tensor, *, centering: Centering | None = None, exact: bool = True) -> Tensor:
        """K v, or C K C v: float64 [n*o, columns], as v, on the kernel's device.

        Computed in float64; where that need not be `exact`, with the rounding of the kernel's dtype, in half the time.

        Args:
            v: [n*o] or [n*o, columns].
            centering: None for K; "global" or "per_output" for C K C (see `ahkernels.cka`).
            exact: Whether in float64.

        Raises:
            TypeError: for no tensor.
            ValueError: for another centering or shape.
        """
        require_centering(centering, none=True)
        require_columns(v, self.shape[0])
        v = v.reshape(self.shape[0], -1) if v.dim() == 1 else v
        fp32 = not exact and self.o > 1 and not self.near_constant(centering)
        v = center(v.detach().to(self.device, torch.float64), self.o, centering)
        v = v.reshape(self.n, self.o, -1).contiguous()
        found = _sum(ops.tangent_product(*_plain(term), v, fp32) for term in self.factors).flatten(0, 1)
        return center(found, self.o, centering)

    def quadratic(self, v: Tensor) -> Tensor:
        """v^T K v of each column of v [n*o, columns]: float64 [columns] on the kernel's device."""
        v = v.detach().to(self.device, torch.float64).reshape(self.n, self.o, -1).contiguous()
        return _sum(ops.tangent_quadratic(*_plain(term), v) for term in self.factors)

    def vjp(self, v: Tensor) -> Tensor:
        """Psi v = J^T v: what the parameters gain from a weight v on each output of each sample.

        The P parameters are those of the layers in turn, of each its weight [m, d] row by row and then its bias [m];
        see `ahkernels.tangent_features`. The squared norm of the result is v^T K v.

        Args:
            v: [n*o] or [n*o, columns].

        Returns:
            [P] or [P, columns], float64 on the kernel's device.

        Raises:
            TypeError: For no tensor.
            ValueError: For another shape.
        """
        require_columns(v, self.shape[0])
        columns = v.detach().to(self.device, torch.float64).reshape(self.n, self.o, -1)
        found = torch.cat([tangent_features.vjp(one, columns) for one in self.factors])
        return found.reshape(len(found), *v.shape[1:])

    def jvp(self, u: Tensor) -> Tensor:
        """Psi^T u = J u: the first-order change of each output of each sample when the parameters change by u.

        Args:
            u: [P] or [P, columns], with the parameters in the order of `vjp`.

        Returns:
            [n*o] or [n*o, columns], float64 on the kernel's device.

        Raises:
            TypeError: For no tensor.
            ValueError: For another shape.
        """
        sizes = [tangent_features.parameters(one) for one in self.factors]
        require_columns(u, sum(sizes), "u")
        columns = u.detach().to(self.device, torch.float64).reshape(sum(sizes), -1)
        parts = zip(self.factors, torch.split(columns, sizes), strict=True)
        return _sum(tangent_features.jvp(one, part) for one, part in parts).reshape(self.shape[0], *u.shape[1:])

    def linear_operator(self, *, centering: Centering | None = None, exact: bool = True) -> LinearOperator:
        """K, or C K C, as a float64 operator on numpy vectors; arguments and products are those of `product`."""
        require_centering(centering, none=True)

        def product(v: Tensor) -> Tensor:
            return self.product(v, centering=centering, exact=exact)

        return scipy_operator(self.shape, product, product)

    def __add__(self, other: TangentKernel) -> TangentKernel:
        """The kernel of both layers together; it shares their factors.

        Raises:
            ValueError: where the kernels are not over the same rows.
        """
        if not isinstance(other, TangentKernel):
            return NotImplemented
        if self.outputs != other.outputs:
            raise ValueError(f"other: expected outputs = {self.outputs.spec!r}, got {other.outputs.spec!r}")
        names = " + ".join(name for name in (self.name, other.name) if name)
        return TangentKernel([*self.factors, *other.factors], self.outputs, self.precision, names)

    def __mul__(self, scale: float) -> TangentKernel:
        """The kernel times a number; of its factors only the backward ones are copied.

        Raises:
            ValueError: for a number that is negative or not finite.
        """
        if not isinstance(scale, (int, float)):
            return NotImplemented
        if not 0 <= scale < math.inf:
            raise ValueError(f"scale: expected a finite number of at least 0, got {scale!r}")
        terms = [replace(term, backward=term.backward * math.sqrt(scale), unchecked=True) for term in self.factors]
        return TangentKernel(terms, self.outputs, self.precision, self.name)

    __rmul__ = __mul__

    def congruence(self, blocks: Tensor) -> TangentKernel:
        """B K B^T for a block-diagonal B of one block for each sample, by the backward factors.

        Args:
            blocks: [n, p, o], for a kernel of p rows for each sample.

        Raises:
            TypeError: for no tensor.
            ValueError: for another shape.
        """
        require_tensor("blocks", blocks, "[n, p, o]")
        if blocks.dim() != 3 or blocks.shape[0] != self.n or blocks.shape[2] != self.o or blocks.shape[1] == 0:
            raise ValueError(f"blocks: expected shape [n, p, o] = [{self.n}, p, {self.o}], got {list(blocks.shape)}")
        blocks = blocks.detach().to(self.device)
        terms = []
        for term in self.factors:
            g = torch.einsum("xpi,xsim->xspm", blocks.to(term.backward.dtype), term.backward)
            terms.append(replace(term, backward=g, unchecked=True))
        outputs = self.outputs if blocks.shape[1] == self.o else OutputSelection("all", blocks.shape[1])
        return TangentKernel(terms, outputs, self.precision, self.name)

    def subset(self, samples: Tensor) -> TangentKernel:
        """The kernel of some of the samples, in their order; its factors are copies.

        Args:
            samples: Indices [k].

        Raises:
            TypeError: for no tensor.
            ValueError: for another shape, no index, or one out of range.
        """
        require_tensor("samples", samples, "of indices [k]")
        if samples.dim() != 1 or samples.dtype.is_floating_point or not samples.numel():
            raise ValueError(f"samples: expected a tensor of indices [k], got shape {list(samples.shape)}")
        low, high = (int(value) for value in samples.aminmax())
        if low < 0 or high >= self.n:
            raise ValueError(f"samples: expected indices from 0 to {self.n - 1}, got {low if low < 0 else high}")
        index = samples.to(self.device).long()
        terms = [
            replace(term, forward=term.forward[index], backward=term.backward[index], unchecked=True)
            for term in self.factors
        ]
        return TangentKernel(terms, self.outputs, self.precision, self.name)

    def with_outputs(self, outputs: Sequence[int]) -> TangentKernel:
        """The kernel of some of the rows of each sample, by their positions; its backward factors are copies."""
        index = torch.tensor(list(outputs), device=self.device)
        terms = [replace(term, backward=term.backward[:, :, index], unchecked=True) for term in self.factors]
        return TangentKernel(terms, OutputSelection("all", len(index)), self.precision, self.name)

    def row_means(self) -> Tensor:
        """Mean of each row of K, float64 [n, o] on the kernel's device; computed once."""
        if self._row_means is None:
            self._row_means = _sum(ops.tangent_row_sums(*_plain(term)) for term in self.factors) / self.shape[0]
        return self._row_means

    def sum(self) -> float:
        """Sum of all entries, from the row means."""
        return float(self.row_means().sum()) * self.shape[0]

    def sum_of_diagonal_blocks(self) -> float:
        """Sum of the entries between rows of the same output."""
        ones = torch.eye(self.o, dtype=torch.float64).expand(self.n, self.o, self.o)
        return float(self.quadratic(ones.reshape(self.shape[0], self.o)).sum())

    def frobenius_norm(self, *, centering: Centering | None = "global") -> float:
        """||C K C||_F, or ||K||_F for None; in one pass over tiles, with no K in memory.

        Args:
            centering: "global", "per_output" (see `ahkernels.cka`) or None.

        Raises:
            ValueError: for another centering.
        """
        require_centering(centering, none=True)
        return math.sqrt(float(inner_products([self], centering)))

    def diagonal(self) -> Tensor:
        """float64 [n*o] on the kernel's device."""
        return _sum(ops.tangent_diagonal(*_plain(term), term.by_jacobian) for term in self.factors).flatten()

    def trace(self) -> float:
        """Sum of the diagonal, that is of all eigenvalues."""
        return float(self.diagonal().sum())

    def _dense(self) -> Tensor:
        batch, _ = _arguments([self])
        return ops.tangent_gram(*batch[:3], self.precision, batch[3])

    def _largest_entries(self, dense: Tensor) -> Tensor:
        return dense.diagonal()  # K is positive semi-definite

    @property
    def factored(self) -> bool:
        """Whether there are a forward and a backward Gram: not of norms, say, nor of what was captured as Jacobians."""
        return all(term.factored for term in self.factors)

    def forward_gram(self) -> TangentKernel:
        """P [n, n] = sum over pairs of uses of <a_s(x), a_s'(x')> + b: the kernel under unit output gradients.

        Raises:
            ValueError: where a layer has no forward factor.
        """
        self._require_factors("forward_gram")
        terms = []
        for term in self.factors:
            a = term.forward
            ones = a.new_ones(1).expand(a.shape[0], a.shape[1], 1, 1)
            terms.append(LayerFactors(a, ones, term.bias, term.layer, unchecked=True))
        selection = OutputSelection("trace", self.outputs.total)
        return TangentKernel(terms, selection, self.precision, f"{self.name} (forward Gram)")

    def backward_gram(self) -> TangentKernel:
        """Q [n*o, n*o] = sum over pairs of uses of <g_s^i(x), g_s'^j(x')>: the tangent kernel of a bias.

        Raises:
            ValueError: where a layer has no forward factor.
        """
        self._require_factors("backward_gram")
        terms = []
        for term in self.factors:
            g = term.backward
            terms.append(LayerFactors(g.new_empty(*g.shape[:2], 0), g, True, term.layer, unchecked=True))
        return TangentKernel(terms, self.outputs, self.precision, f"{self.name} (backward Gram)")

    def _require_factors(self, method: str) -> None:
        for term in self.factors:
            if not term.factored:
                raise ValueError(
                    f"{method}: expected a kernel with a forward and a backward factor, got layer {term.layer!r} as "
                    "its Jacobian; capture with keep_factors=True (norms and layers without a rule have no factors)"
                )


def kernel_of_outputs(
    factors: Sequence[LayerFactors], outputs: OutputSelection, precision: str, name: str
) -> TangentKernel:
    """The kernel of captured factors [n, s, r, m]; for "trace", the outputs' gradients become one of o*m numbers."""
    if outputs.spec == "trace":
        factors = [
            replace(term, backward=term.backward.reshape(*term.backward.shape[:2], 1, -1), unchecked=True)
            for term in factors
        ]
    return TangentKernel(factors, outputs, precision, name)


def require_kernel(argument: str, value: object) -> None:
    """Raises TypeError naming the argument for anything but a tangent kernel."""
    if not isinstance(value, TangentKernel):
        raise TypeError(f"{argument}: expected a tangent kernel, got {type(value).__name__}")


def _require_one_shape(terms: Sequence[LayerFactors]) -> None:
    if not terms:
        raise ValueError("factors: expected those of at least one layer, got none")
    first = terms[0]
    for term in terms[1:]:
        for what, wanted, got in (
            ("n and o", (first.n, first.o), (term.n, term.o)),
            ("dtype", first.forward.dtype, term.forward.dtype),
            ("device", first.forward.device, term.forward.device),
        ):
            if wanted != got:
                raise ValueError(
                    f"factors: expected layers of one {what} in a group, got {wanted} of {first.layer!r} and {got} of "
                    f"{term.layer!r}"
                )


def _plain(term: LayerFactors) -> tuple[Tensor, Tensor, float]:
    return term.forward.detach(), term.backward.detach(), float(term.bias)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    first, *others = parts
    for part in others:
        first += part
    return first
