"""What ranks give to one another for the exact norm of a kernel, and the work of each: from shapes alone.

The bytes are those that `Group.traffic` counts. They are known before anything is measured, with two exceptions. An
embedding has as many inputs as there are different words in the samples, which are taken to be as many as there can be.
And where outputs come first, a kernel may turn out to lose too many digits that way (`ahkernels.contraction`): then its
norm is taken once more in float64 or by tiles, and what that sends is not counted here.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from ahkernels.centering import Centering
from ahkernels.contraction.order import LayerShape, Order, flops, order_of
from ahkernels.contraction.outputs_first import columns_of
from ahkernels.distributed.samples import bytes_joined, fewer_bytes_through_samples, meetings, pairs_of
from ahkernels.inner_products import fit_offsets, groups_of_outputs

_NUMBER = 8  # bytes of a number in float64


@dataclass(frozen=True)
class Traffic:
    """What one rank gives to a group.

    Attributes:
        sum: Bytes for sums over the ranks.
        gather: Bytes that all ranks get.
        shift: Bytes of samples that go to one other rank at a time.
        collectives: How many collectives it takes part in, at least: sums of more than a few MiB come in several.
    """

    sum: int = 0
    gather: int = 0
    shift: int = 0
    collectives: int = 0

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.sum + self.gather + self.shift

    def __add__(self, other: Traffic) -> Traffic:
        """Both together."""
        return Traffic(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def _sums(*numbers: int) -> Traffic:
    """Sums over the ranks of so many numbers each."""
    return Traffic(sum=_NUMBER * sum(numbers), collectives=len(numbers))


@dataclass(frozen=True)
class NormOverRanks:
    """The exact norm of the kernel of one layer, whose samples are spread over the ranks of a group.

    Attributes:
        counts: The number of samples of each rank.
        o: Rows of the kernel for each sample.
        layer: The sizes of the layer's factors.
        item: Bytes of a number of the factors.
        centerings: The centerings that the norm is wanted for.
    """

    counts: Sequence[int]
    o: int
    layer: LayerShape
    item: int
    centerings: Sequence[Centering]

    @property
    def order(self) -> Order:
        """The order of contraction, which all ranks choose alike."""
        return order_of(sum(self.counts), self.o, [self.layer], by_output=self._by_output)

    @property
    def _by_output(self) -> bool:
        return "per_output" in self.centerings

    def flops(self, rank: int) -> float:
        """Floating-point operations of a rank, for its samples and its pairs of samples."""
        counted = functools.partial(flops, o=self.o, layers=[self.layer], by_output=self._by_output)
        n, here = sum(self.counts), self.counts[rank]
        if self.order == "parameters first":  # no pairs
            return counted(n)[self.order] * here / n
        return counted(here, pairs=pairs_of(rank, self.counts))[self.order]

    def traffic(self, rank: int) -> Traffic:
        """What a rank gives to the others."""
        if self.order == "parameters first":
            parameters = self.layer.parameters
            return _sums(2, self.o * parameters, parameters**2)
        if self.order == "outputs first":
            return self._outputs_first(rank)
        return self._tiles(rank)

    def held(self, rank: int) -> int:
        """Bytes that a rank holds beside its own factors while samples meet."""
        if self.order == "parameters first" or len(self.counts) == 1:
            return 0
        most, means = max(self.counts), 0
        if self.order == "tiles":
            means = self.o**2 if self._by_output and fit_offsets(1, most, self.o) else self.o
        return bytes_joined(self.counts[rank], most, sum(self._of_sample(self.o, means)))

    def _outputs_first(self, rank: int) -> Traffic:
        found = self._ring(rank, self.o, means=0)
        if self._by_output:
            for columns in columns_of(self.o):
                found += self._product(columns.stop - columns.start)
            found += _sums(self.o**2, 1)
        if "global" in self.centerings:
            found += self._product(1) + _sums(1, 1)
        return found

    def _tiles(self, rank: int) -> Traffic:
        """See `ahkernels.distributed.pairs`."""
        most, both = max(self.counts), len(self.centerings) > 1
        if self.o == 1 or (self._by_output and fit_offsets(1, most, self.o)):
            return self._per_output(rank, self.o, and_global=both and self.o > 1)
        found = Traffic()
        if self._by_output:
            groups = [len(one) for one in groups_of_outputs(1, most, self.o)]
            unions = [sum(both) for both in itertools.combinations(groups, 2)]
            for o in [*unions, *groups] if len(groups) > 2 else [self.o]:
                found += self._per_output(rank, o, and_global=False)
        if "global" in self.centerings:
            found += self._product(1) + _sums(1) + self._ring(rank, self.o, means=self.o)
        return found

    def _per_output(self, rank: int, o: int, *, and_global: bool) -> Traffic:
        """Of o outputs."""
        s, d, m, *_ = self.layer
        found = _sums(s * d, s * o * m, o * m * d + s * o * m, o**2)
        if and_global:
            found += _sums(o**2, 1)
        return found + _sums(2, o**2) + self._ring(rank, o, means=o**2)

    def _ring(self, rank: int, o: int, means: int) -> Traffic:
        """The factors of o outputs, and so many means of each sample; and the parts of the sum."""
        ring = list(meetings(rank, self.counts))
        if not ring:
            return Traffic()
        of_sample = self._of_sample(o, means)
        sent = sum(one.send.stop - one.send.start for one in ring)
        calls = len(ring) * sum(number > 0 for number in of_sample)
        return Traffic(gather=_NUMBER, shift=sent * sum(of_sample), collectives=calls + 1)

    def _of_sample(self, o: int, means: int) -> list[int]:
        """Bytes of the factors of a sample for o outputs, and of so many means."""
        s, d, m, *_ = self.layer
        return [s * d * self.item, s * o * m * self.item, means * _NUMBER]

    def _product(self, columns: int) -> Traffic:
        """A product of the kernel; see `ShardedSamples.product`."""
        s, d, m, *_ = self.layer
        n, size = sum(self.counts), len(self.counts)
        if fewer_bytes_through_samples(self.layer, self.item, columns, n, size):
            of_sample = s * d * self.item + s * columns * m * _NUMBER
            return Traffic(gather=max(self.counts) * of_sample, collectives=2)
        return _sums(columns * m * (d + 1))
