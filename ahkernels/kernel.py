"""The tangent kernel of a layer, or of several, as an operator: nothing of it is computed before it is asked for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import scipy
import torch
from torch import Tensor

from ahkernels import ops, tangent_features
from ahkernels.centering import Centering, near_constant, require_centering
from ahkernels.factors import LayerFactors, of_one_dtype
from ahkernels.inner_products import inner_products
from ahkernels.kernel_operator import KernelOperator, require_columns, require_tensor, scipy_operator
from ahkernels.ops import KernelBatch
from ahkernels.outputs import OutputSelection
from ahkernels.precision import resolve_precision
from ahkernels.samples import Samples

_NUMBERS_JOINED = 1 << 24  # of the gradients of several outputs, side by side


class TangentKernel(KernelOperator):
    """The symmetric positive semi-definite kernel K [n*o, n*o] of a layer or of a group of layers.

    Row (x, i), output i of sample x, has index x*o + i, and

        K[(x, i), (x', j)] = sum_{s, s'} (<a_s(x), a_s'(x')> + b) <g_s^i(x), g_s'^j(x')>

    over pairs of positions s and s': for one position the Hadamard product of forward and backward Gram (equation 9 of
    the paper, there for one output and no bias). The kernel of a group of layers is the sum of their kernels, since it
    is an inner product over all of their parameters.

    Args:
        factors: The factors of the layer, or of each layer of a group. For n x n kernels (`outputs` "trace" and "sum")
            they are already those of a single output.
        outputs: What the rows are; by default all outputs.
        precision: See `resolve_precision`.
        name: Name of the kernel for messages; by default that of the layer.
        samples: The samples that it is over; by default those of the factors, and no others.

    Attributes:
        factors: The factors of each layer.
        samples: The samples that it is over. Where several processes have a part of them each, factors and vectors are
            those of the samples here, all processes call the same methods together, and numbers are the same in each.

    Raises:
        TypeError: If `factors` or `outputs` has another type.
        ValueError: If the factors do not fit each other or `outputs`.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> kernel = ah.tangent_kernels(model, torch.randn(20, 4))["0"]
        >>> kernel
        TangentKernel('0', shape=(60, 60), outputs='all', dtype=torch.float32)
        >>> v = torch.randn(60, 5)
        >>> torch.allclose(kernel @ v, kernel.to_dense().double() @ v.double(), rtol=1e-4, atol=1e-4)
        True
        >>> (kernel + 0.5 * kernel).shape, kernel.subset(torch.tensor([3, 7])).shape
        (torch.Size([60, 60]), torch.Size([6, 6]))
    """

    def __init__(
        self,
        factors: LayerFactors | Sequence[LayerFactors],
        outputs: OutputSelection | None = None,
        precision: str | None = None,
        name: str | None = None,
        samples: Samples | None = None,
    ) -> None:
        given = (factors,) if isinstance(factors, LayerFactors) else factors
        if not isinstance(given, Sequence):
            raise TypeError(f"factors: expected LayerFactors or a sequence of them, got {type(factors).__name__}")
        for one in given:
            if not isinstance(one, LayerFactors):
                raise TypeError(f"factors: expected LayerFactors, got {type(one).__name__} among them")
        if outputs is not None and not isinstance(outputs, OutputSelection):
            raise TypeError(f"outputs: expected an OutputSelection, got {type(outputs).__name__}")
        self.factors = tuple(given)
        _require_one_shape(self.factors)
        first = self.factors[0]
        self.name = first.layer if name is None else name
        self.outputs = OutputSelection("all", first.o) if outputs is None else outputs
        rows = 1 if self.outputs.per_sample else len(self.outputs.indices)
        if rows != first.o:
            raise ValueError(f"outputs: expected {first.o} rows for each sample, as in factors, got {rows}")
        self.precision = resolve_precision(precision)
        self.samples = Samples(first.n) if samples is None else samples
        self._row_means: Tensor | None = None

    # ---- what it is

    @property
    def n(self) -> int:
        """Number of samples here; `samples.n` is that of all processes."""
        return self.factors[0].n

    @property
    def o(self) -> int:
        """Number of rows for each sample."""
        return self.factors[0].o

    @property
    def shape(self) -> torch.Size:
        """(n*o, n*o), with the samples of all processes."""
        rows = self.samples.n * self.o
        return torch.Size((rows, rows))

    @property
    def rows_here(self) -> int:
        """The number of rows of the samples here, which is the length of vectors."""
        return self.n * self.o

    @property
    def columns_here(self) -> int:
        """The same as `rows_here`, since K is symmetric."""
        return self.rows_here

    @property
    def device(self) -> torch.device:
        """The device of the factors."""
        return self.factors[0].forward.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of `to_dense()`: float64 for float64 factors, otherwise float32."""
        return torch.float64 if self.factors[0].forward.dtype == torch.float64 else torch.float32

    @property
    def batch(self) -> KernelBatch:
        """The kernel as the ops take it, alone in its batch."""
        return KernelBatch.of([self.factors])

    @property
    def T(self) -> TangentKernel:
        """The kernel itself, which is symmetric."""
        return self

    def __repr__(self) -> str:
        """Name, shape, outputs and dtype in one line."""
        name = f"{self.name!r}, " if self.name else ""
        return f"TangentKernel({name}shape={tuple(self.shape)}, outputs={self.outputs.spec!r}, dtype={self.dtype})"

    def require_finite(self) -> None:
        """Raises NonFiniteError naming the factor and the layer if there is nan or inf."""
        for one in self.factors:
            one.require_finite()

    def near_constant(self, centering: Centering | None) -> bool:
        """Whether centering may leave so little of K that fp32 has no digits of it; see `ahkernels.centering`."""
        return near_constant(self.o, centering)

    # ---- products

    def _product(self, v: Tensor) -> Tensor:
        return self.product(v)

    def _require_columns(self, v: object) -> None:
        self.samples.everywhere(lambda: require_columns(v, self.rows_here))

    def product(self, v: Tensor, *, centering: Centering | None = None, exact: bool = True) -> Tensor:
        """K v, or C K C v, on the kernel's device.

        Args:
            v: [n*o] or [n*o, columns], for the samples here.
            centering: None for K; "global" or "per_output" for C K C (see `ahkernels.cka`).
            exact: Whether to compute in float64; otherwise with the rounding of the kernel's dtype, in half the time.

        Returns:
            float64 [n*o, columns]; one column for a vector v.

        Raises:
            TypeError: If v is no tensor.
            ValueError: For another centering or shape.
        """
        require_centering(centering, none=True)
        self._require_columns(v)
        v = v.unsqueeze(1) if v.dim() == 1 else v
        fp32 = not exact and self.o > 1 and not self.near_constant(centering)
        v = self.samples.center(v.detach().to(self.device, torch.float64), self.o, centering)
        v = v.reshape(self.n, self.o, v.shape[1]).contiguous()
        return self.samples.center(self.samples.product(self.batch, v, fp32).flatten(0, 1), self.o, centering)

    def quadratic(self, v: Tensor) -> Tensor:
        """v^T K v for each column of v [n*o, columns]: float64 [columns] on the kernel's device."""
        v = v.detach().to(self.device, torch.float64).reshape(self.n, self.o, _columns(v)).contiguous()
        return self.samples.quadratic(self.batch, v)

    def vjp(self, v: Tensor) -> Tensor:
        """Psi v = J^T v: the gradient of <v, f> by the parameters, for a weight v on each output of each sample.

        The P parameters are those of the layers in turn: of each layer its weight [m, d], row by row, and then its bias
        [m]; see `ahkernels.tangent_features`. That is how linear layers, convolutions and norms hold them. Others may
        hold them otherwise, such as modules with a transposed weight or with several, and an embedding has the rows of
        the words that occur. The squared norm of the result is v^T K v.

        Args:
            v: [n*o] or [n*o, columns].

        Returns:
            [P] or [P, columns], float64 on the kernel's device.

        Raises:
            TypeError: If v is no tensor.
            ValueError: For another shape, or a layer that has only a square root of its kernel.
        """
        self._require_columns(v)
        columns = v.detach().to(self.device, torch.float64).reshape(self.n, self.o, _columns(v))
        found = self.samples.sum(torch.cat([tangent_features.vjp(one, columns) for one in self.factors]))
        return found.reshape(len(found), *v.shape[1:])

    def jvp(self, u: Tensor) -> Tensor:
        """Psi^T u = J u: the first-order change of each output of each sample when the parameters change by u.

        Args:
            u: [P] or [P, columns], with the parameters in the order of `vjp`.

        Returns:
            [n*o] or [n*o, columns], float64 on the kernel's device.

        Raises:
            TypeError: If u is no tensor.
            ValueError: For another shape, or a layer that has only a square root of its kernel.
        """
        sizes = [tangent_features.parameters(one) for one in self.factors]
        require_columns(u, sum(sizes), "u")
        columns = u.detach().to(self.device, torch.float64).reshape(sum(sizes), -1)
        found = columns.new_zeros(self.n, self.o, columns.shape[1])
        for one, part in zip(self.factors, torch.split(columns, sizes), strict=True):
            found += tangent_features.jvp(one, part)
        return found.reshape(self.rows_here, *u.shape[1:])

    def linear_operator(
        self, *, centering: Centering | None = None, exact: bool = True
    ) -> scipy.sparse.linalg.LinearOperator:
        """K, or C K C, as a float64 operator on numpy vectors; arguments and products are those of `product`."""
        require_centering(centering, none=True)
        if self.samples.sharded:
            raise ValueError(
                "linear_operator: expected a kernel whose samples are all in this process, got one over several "
                "processes; `product` takes the rows of the samples here"
            )

        def product(v: Tensor) -> Tensor:
            return self.product(v, centering=centering, exact=exact)

        return scipy_operator(self.shape, product, product)

    # ---- numbers

    def diagonal(self) -> Tensor:
        """The diagonal at the samples here, float64 [n*o] on the kernel's device."""
        if self.n == 0:
            return torch.zeros(0, dtype=torch.float64, device=self.device)
        return ops.tangent_diagonal(self.batch).flatten()

    def trace(self) -> float:
        """Sum of the diagonal, which is the sum of all eigenvalues."""
        return float(self.samples.sum(self.diagonal().sum()))

    def row_means(self) -> Tensor:
        """Mean of each row of K, float64 [n, o] on the kernel's device; computed once."""
        if self._row_means is None:
            self._row_means = self.samples.row_sums(self.batch) / self.shape[0]
        return self._row_means

    def sum(self) -> float:
        """Sum of all entries, from the row means."""
        return float(self.samples.sum(self.row_means().sum())) * self.shape[0]

    def sum_of_diagonal_blocks(self) -> Tensor:
        """Sum of the entries between rows of the same output, a float64 scalar on the kernel's device."""
        ones = torch.ones(self.n, 1, 1, dtype=torch.float64, device=self.device)
        of_output = sum(one.positions * one.backward.shape[3] for one in self.factors)
        step = max(1, _NUMBERS_JOINED // max(1, self.samples.n * of_output))  # the same in all processes
        total = ones.new_zeros(())
        for begin in range(0, self.o, step):
            # The blocks are those of one output whose gradient is that of all of them side by side.
            joined = [g[:, :, begin : begin + step].flatten(2).unsqueeze(2) for g in self.batch.backward]
            total += self.samples.quadratic(self.batch._replace(backward=joined), ones).squeeze()
        return total

    def frobenius_norm(self, *, centering: Centering | None = "global") -> float:
        """||C K C||_F, or ||K||_F without centering, from one pass over tiles with no K in memory.

        Args:
            centering: "global", "per_output" (see `ahkernels.cka`) or None.

        Raises:
            ValueError: For another centering.
        """
        require_centering(centering, none=True)
        return math.sqrt(float(inner_products([self], centering)))

    def _dense(self, out: Tensor | None) -> Tensor:
        if self.samples.sharded:
            raise ValueError(
                "to_dense: expected a kernel whose samples are all in this process, got one over several processes; "
                "its products, spectra and alignments need no K in memory"
            )
        return ops.tangent_gram(self.batch, self.precision, out)

    def _tensors(self) -> Iterable[Tensor]:
        return itertools.chain.from_iterable((one.forward, one.backward) for one in self.factors)

    def _largest_entries(self, dense: Tensor) -> Tensor:
        return dense.diagonal()  # K is positive semi-definite

    # ---- other kernels from its factors

    def __add__(self, other: TangentKernel) -> TangentKernel:
        """The kernel of the layers of both, which shares their factors.

        Raises:
            ValueError: If the kernels are not over the same rows.
        """
        if not isinstance(other, TangentKernel):
            return NotImplemented
        if self.outputs != other.outputs:
            raise ValueError(f"other: expected outputs = {self.outputs.spec!r}, got {other.outputs.spec!r}")
        names = " + ".join(name for name in (self.name, other.name) if name)
        return TangentKernel([*self.factors, *other.factors], self.outputs, self.precision, names, self.samples)

    def __radd__(self, other: object) -> TangentKernel:
        """0 + K is K, so that sum() of kernels works."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, scale: float) -> TangentKernel:
        """The kernel times a number; of its factors only the backward ones are copied.

        Raises:
            ValueError: For a number that is negative or not finite.
        """
        if not isinstance(scale, (int, float)):
            return NotImplemented
        if not 0 <= scale < math.inf:
            raise ValueError(f"scale: expected a finite number of at least 0, got {scale!r}")
        return self._with(self.outputs, lambda g: g * math.sqrt(scale))

    __rmul__ = __mul__

    def congruence(self, blocks: Tensor) -> TangentKernel:
        """B K B^T for a block-diagonal B with one block for each sample; its backward factors are new.

        Args:
            blocks: [n, p, o], for a kernel with p rows for each sample.

        Raises:
            TypeError: If blocks is no tensor.
            ValueError: For another shape.
        """
        require_tensor("blocks", blocks, "[n, p, o]")
        if blocks.dim() != 3 or blocks.shape[0] != self.n or blocks.shape[2] != self.o or blocks.shape[1] == 0:
            raise ValueError(f"blocks: expected shape [n, p, o] = [{self.n}, p, {self.o}], got {list(blocks.shape)}")
        blocks = blocks.detach().to(self.device)
        outputs = self.outputs if blocks.shape[1] == self.o else OutputSelection("all", blocks.shape[1])
        return self._with(outputs, lambda g: torch.einsum("xpi,xsim->xspm", blocks.to(g.dtype), g))

    def subset(self, samples: Tensor) -> TangentKernel:
        """The kernel of some of the samples in the order of their indices; its factors are copies.

        Args:
            samples: Indices [k].

        Raises:
            TypeError: If samples is no tensor.
            ValueError: For another shape, no index, or one out of range.
        """
        require_tensor("samples", samples, "of indices [k]")
        if samples.dim() != 1 or samples.dtype.is_floating_point or not samples.numel():
            raise ValueError(f"samples: expected a tensor of indices [k], got shape {list(samples.shape)}")
        low, high = (int(value) for value in samples.aminmax())
        if low < 0 or high >= self.n:
            raise ValueError(f"samples: expected indices from 0 to {self.n - 1}, got {low if low < 0 else high}")
        index = samples.to(self.device).long()
        layers = [
            replace(one, forward=one.forward[index], backward=one.backward[index], unchecked=True)
            for one in self.factors
        ]
        return TangentKernel(layers, self.outputs, self.precision, self.name, self.samples.subset(len(index)))

    def with_outputs(self, outputs: Sequence[int]) -> TangentKernel:
        """The kernel of some of the rows of each sample, by their indices; its backward factors are copies."""
        index = torch.tensor(list(outputs), device=self.device)
        return self._with(OutputSelection("all", len(index)), lambda g: g[:, :, index])

    @property
    def factored(self) -> bool:
        """Whether every layer has a forward and a backward Gram.

        Norms have none, and layers that were captured as Jacobians have none.
        """
        return all(factors.factored for factors in self.factors)

    def forward_gram(self) -> TangentKernel:
        """P [n, n] = sum_{s, s'} (<a_s(x), a_s'(x')> + b): the kernel for output gradients of one.

        Its factors have one position: it is <A(x), A(x')> + b s^2 with the sum A of a over the s positions.

        Raises:
            ValueError: If a layer has no forward factor.
        """
        self._require_factored("forward_gram")
        layers = []
        for factors in of_one_dtype([one.at_one_position() for one in self.factors]):
            ones = factors.forward.new_ones(1).expand(self.n, 1, 1, 1)
            layers.append(LayerFactors(factors.forward, ones, factors.bias, factors.layer, unchecked=True))
        selection = OutputSelection("trace", self.outputs.total)
        return TangentKernel(layers, selection, self.precision, f"{self.name} (forward Gram)", self.samples)

    def backward_gram(self) -> TangentKernel:
        """Q [n*o, n*o] = sum_{s, s'} <g_s^i(x), g_s'^j(x')>: the tangent kernel of a bias.

        Its factors have one position: it is <G^i(x), G^j(x')> with the sum G of g over the positions.

        Raises:
            ValueError: If a layer has no forward factor.
        """
        self._require_factored("backward_gram")
        layers = []
        for factors in of_one_dtype([one.at_one_position() for one in self.factors]):
            g = factors.backward
            layers.append(LayerFactors(g.new_empty(self.n, 1, 0), g, True, factors.layer, unchecked=True))
        return TangentKernel(layers, self.outputs, self.precision, f"{self.name} (backward Gram)", self.samples)

    def _with(self, outputs: OutputSelection, backward: Callable[[Tensor], Tensor]) -> TangentKernel:
        """The kernel of changed backward factors."""
        layers = [replace(one, backward=backward(one.backward), unchecked=True) for one in self.factors]
        return TangentKernel(layers, outputs, self.precision, self.name, self.samples)

    def _require_factored(self, method: str) -> None:
        for factors in self.factors:
            if not factors.factored:
                raise ValueError(
                    f"{method}: expected a kernel with a forward and a backward factor, got layer {factors.layer!r} as "
                    "its Jacobian; capture with keep_factors=True (norms and layers without a rule have no factors)"
                )


def _columns(v: Tensor) -> int:
    return v.shape[-1] if v.dim() > 1 else 1


def kernel_of_outputs(
    factors: Sequence[LayerFactors],
    outputs: OutputSelection,
    precision: str,
    name: str,
    samples: Samples | None = None,
) -> TangentKernel:
    """The kernel of captured factors with backward [n, s, r, m].

    For "trace" the gradients of the r outputs become those of one output with r*m pre-activations.
    """
    if outputs.spec == "trace":
        factors = [replace(one, backward=one.backward.flatten(2).unsqueeze(2), unchecked=True) for one in factors]
    return TangentKernel(factors, outputs, precision, name, samples)


def require_kernel(argument: str, value: object) -> None:
    """Raises TypeError naming the argument for anything but a tangent kernel."""
    if not isinstance(value, TangentKernel):
        raise TypeError(f"{argument}: expected a tangent kernel, got {type(value).__name__}")


def _require_one_shape(layers: Sequence[LayerFactors]) -> None:
    if not layers:
        raise ValueError("factors: expected those of at least one layer, got none")
    first = layers[0]
    for other in layers[1:]:
        for what, wanted, got in (
            ("n and o", (first.n, first.o), (other.n, other.o)),
            ("dtype", first.forward.dtype, other.forward.dtype),
            ("device", first.forward.device, other.forward.device),
        ):
            if wanted != got:
                raise ValueError(
                    f"factors: expected layers of one {what} in a group, got {wanted} of {first.layer!r} and {got} of "
                    f"{other.layer!r}"
                )
