"""The samples that kernels are over, and all that is summed over them.

Here they are all in one process. `ahkernels.distributed.ShardedSamples` has a part of them in each of several.
Statistics know samples by this class alone, so that each of them is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ahkernels import ops
from ahkernels.centering import Centering
from ahkernels.ops import KernelBatch

_Result = TypeVar("_Result")

# Numbers that are drawn at a time: they are the same however many processes there are.
_NUMBERS_DRAWN = 1 << 24


class Pairs(NamedTuple):
    """Pairs of a sample of one group and one of another, of tensors that hold both groups.

    Attributes:
        first_end: End of the samples of the first group.
        second_begin: Begin of those of the second one, to the end; a multiple of `ops.TILING["panel"]`.
    """

    first_end: int
    second_begin: int


class Samples:
    """The n samples of a measurement, all of them in this process.

    Vectors over the rows (x, i) of a kernel with o rows for each sample are [rows, columns] here, for the samples of
    this process.

    Args:
        n: The number of samples.

    Attributes:
        n: The number of samples of all processes.
        held: The samples among them that this process holds.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.held = slice(0, n)

    @property
    def count(self) -> int:
        """The number of samples of this process."""
        count: int = self.held.stop - self.held.start
        return count

    @property
    def most(self) -> int:
        """The most samples of any process."""
        return self.n

    @property
    def sharded(self) -> bool:
        """Whether the samples are spread over several processes."""
        return False

    def subset(self, count: int) -> Samples:
        """Some of these samples, of which so many are here."""
        return Samples(count)

    # ---- what all processes take part in

    def everywhere(self, action: Callable[[], _Result]) -> _Result:
        """Does something that may fail; if it fails in one process, it raises in all."""
        return action()

    def sum(self, part: Tensor) -> Tensor:
        """The sum of what each process has."""
        return part

    def maximum(self, part: Tensor) -> Tensor:
        """The largest of what each process has."""
        return part

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in order, from those of each."""
        return rows

    # ---- vectors over the rows of a kernel

    def center(self, v: Tensor, o: int, centering: Centering | None) -> Tensor:
        """C v for columns v [rows, columns] of a kernel with o rows for each sample."""
        if centering is None:
            return v
        if centering == "global":
            return v - self.sum(v.sum(0)) / (self.n * o)
        by_output = v.view(-1, o, v.shape[1])
        return (by_output - self.sum(by_output.sum(0)) / self.n).view_as(v)

    def inner(self, v: Tensor, w: Tensor) -> Tensor:
        """v^T w."""
        return self.sum(v.T @ w)

    def norms(self, v: Tensor) -> Tensor:
        """The norm of each column."""
        return self.sum(v.square().sum(0)).sqrt()

    def orthonormal(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Q [rows, k] with orthonormal columns and R [k, columns] of v = Q R, with k the lesser of columns and rows."""
        q, r = torch.linalg.qr(v)
        return q, r

    def random(self, o: int, columns: int, generator: torch.Generator) -> Tensor:
        """Standard normal numbers [rows, columns] on the CPU, which do not depend on the processes."""
        step = max(1, _NUMBERS_DRAWN // max(1, columns * o))
        if step >= self.n and self.count == self.n:
            return torch.randn(self.n * o, columns, generator=generator, dtype=torch.float64)
        found = torch.empty(self.count, o * columns, dtype=torch.float64)
        for begin in range(0, self.n, step):
            drawn = torch.randn(min(step, self.n - begin), o * columns, generator=generator, dtype=torch.float64)
            low, high = max(begin, self.held.start), min(begin + len(drawn), self.held.stop)
            if low < high:
                found[low - self.held.start : high - self.held.start] = drawn[low - begin : high - begin]
        return found.view(self.count * o, columns)

    def identity(self, o: int) -> Tensor:
        """The identity over all rows of a kernel with o rows for each sample: [rows, rows of all processes]."""
        first, last = self.held.start * o, self.held.stop * o
        found = torch.zeros(last - first, self.n * o, dtype=torch.float64)
        found[:, first:last] = torch.eye(last - first, dtype=torch.float64)
        return found

    # ---- products with a kernel

    def product(self, batch: KernelBatch, v: Tensor, fp32: bool = False) -> Tensor:
        """K v of one kernel whose factors are those of the samples here; see `ops.tangent_product`."""
        return ops.tangent_product(batch, v, fp32)

    def quadratic(self, batch: KernelBatch, v: Tensor) -> Tensor:
        """v^T K v of one kernel for each column of v; see `ops.tangent_quadratic`."""
        return ops.tangent_quadratic(batch, v)

    def row_sums(self, batch: KernelBatch) -> Tensor:
        """K 1 of one kernel; see `ops.tangent_row_sums`."""
        return ops.tangent_row_sums(batch)

    # ---- pairs of samples

    def sum_over_pairs(
        self, tensors: Sequence[Tensor], part: Callable[[Sequence[Tensor], Pairs | None], Tensor], zero: Tensor
    ) -> Tensor:
        """The sum over all pairs of samples, in float64.

        Args:
            tensors: What there is of each sample, [count, ...].
            part: The sum over all pairs of the samples in tensors, and with `Pairs` over those alone, each twice.
            zero: The sum over nothing.
        """
        return part(tensors, None)
