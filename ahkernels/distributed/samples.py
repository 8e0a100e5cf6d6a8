"""Samples in shards: each process has some of them, in the order of the ranks.

Thin products, sums and means are contracted with the samples here and added up over the ranks: of a layer's factors
nothing is sent but sums over samples, or rows of them where these are fewer numbers. Only a norm needs every pair of
samples. For that each rank gets the factors of half of the others, one after the other, while it works on those that
came before (`ShardedSamples.sum_over_pairs`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ahkernels.contraction.order import LayerShape
from ahkernels.distributed.group import Group
from ahkernels.ops import TILING, KernelBatch
from ahkernels.ops.batch import Layer
from ahkernels.ops.plain import ThinFactors, chunk_elements, steps, weight_gradients
from ahkernels.samples import Pairs, Samples

_Result = TypeVar("_Result")

# Numbers at a time are so small a part of those in one process, since there are copies of what is sent.
_PART = 8


class Meeting(NamedTuple):
    """One step of the half ring: what a rank sends and receives, and which pairs of samples it then works on.

    Attributes:
        to: The rank that gets some samples of this one.
        send: Which ones.
        of: The rank whose samples come.
        receive: Which of them.
        own: The samples here that are paired with those that come.
    """

    to: int
    send: slice
    of: int
    receive: slice
    own: slice


def meetings(rank: int, counts: Sequence[int]) -> Iterator[Meeting]:
    """The half ring: every pair of shards meets once, and each rank has as many meetings as any other.

    Rank r meets r + 1, r + 2, ... With an even number of ranks those opposite to one another share their pairs: the
    lower one takes the first half of its samples, and the other the rest of them.

    Args:
        rank: This rank.
        counts: The number of samples of each rank.
    """
    size = len(counts)
    everything = slice(0, counts[rank])
    for distance in range(1, (size - 1) // 2 + 1):
        to, of = (rank - distance) % size, (rank + distance) % size
        yield Meeting(to, everything, of, slice(0, counts[of]), everything)
    if size % 2 == 0:
        other = (rank + size // 2) % size
        low = min(rank, other)
        first, rest = slice(0, counts[low] // 2), slice(counts[low] // 2, counts[low])
        if rank == low:
            yield Meeting(other, rest, other, slice(0, counts[other]), first)
        else:
            yield Meeting(other, everything, other, rest, everything)


def pairs_of(rank: int, counts: Sequence[int]) -> int:
    """How many of the n^2 ordered pairs of samples a rank works on, directly or as their mirror images."""
    met = sum(_length(one.own) * _length(one.receive) for one in meetings(rank, counts))
    return counts[rank] ** 2 + 2 * met


def fewer_bytes_through_samples(layer: LayerShape, item: int, columns: int, n: int, ranks: int) -> bool:
    """Whether the inputs and h of all samples are fewer bytes than J^T v, which a sum sends and receives.

    Args:
        layer: The sizes of the layer.
        item: Bytes of a number of its forward factor.
        columns: Those of v.
        n: The number of samples of all ranks.
        ranks: The number of ranks.
    """
    s, d, m = layer.s, layer.d, layer.m
    through_samples = max(1, ranks - 1) * n * s * (d * item + columns * m * 8)
    return d > 0 and through_samples < 2 * columns * m * (d + 1) * 8


class ShardedSamples(Samples):
    """The samples of all ranks of a group, of which this process holds some; see `Samples`.

    Args:
        group: The group.
        counts: The number of samples of each rank, of which some may be 0.
    """

    def __init__(self, group: Group, counts: Sequence[int]) -> None:
        super().__init__(sum(counts))
        ends = list(itertools.accumulate(counts, initial=0))
        self.group, self.counts = group, list(counts)
        self.held = slice(ends[group.rank], ends[group.rank + 1])

    @property
    def most(self) -> int:
        """The most samples of any process."""
        return max(self.counts)

    @property
    def sharded(self) -> bool:
        """True."""
        return True

    def subset(self, count: int) -> ShardedSamples:
        """Some of these samples, of which so many are here."""
        return ShardedSamples(self.group, [int(one) for one in self.group.gather(torch.tensor([count]))])

    def everywhere(self, action: Callable[[], _Result]) -> _Result:
        """See `Group.everywhere`."""
        return self.group.everywhere(action)

    def sum(self, part: Tensor) -> Tensor:
        """The sum of what each process has."""
        return self.group.sum(part)

    def maximum(self, part: Tensor) -> Tensor:
        """The largest of what each process has."""
        return self.group.maximum(part)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in order, from those of each."""
        of_sample = len(rows) // self.count if self.count else 0
        of_each = max(int(one) for one in self.group.gather(torch.tensor([of_sample])))
        return torch.cat(self.group.gather(rows, [of_each * count for count in self.counts]))

    def orthonormal(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Samples.orthonormal`: the triangles of all ranks are taken apart once more, on each rank alike."""
        q, r = torch.linalg.qr(v)  # [rows, least], [least, columns]
        heights = [int(one) for one in self.group.gather(torch.tensor([len(r)]))]
        begin = sum(heights[: self.group.rank])
        of_triangles, r_all = torch.linalg.qr(torch.cat(self.group.gather(r, heights)))
        return q @ of_triangles[begin : begin + len(r)], r_all

    # ---- products with a kernel

    def product(self, batch: KernelBatch, v: Tensor, fp32: bool = False) -> Tensor:
        """K v, in float64: J^T v here, its sum over the ranks, and J times that.

        Where all samples have fewer numbers than the weights, their forward factors and their shares of J^T v are
        gathered instead.
        """
        found = torch.zeros_like(v)
        for layer in batch.kernels()[0]:
            self._add_product(found, layer, v)
        return found

    def _add_product(self, to: Tensor, layer: Layer, v: Tensor) -> None:
        fewer = self._goes_through_samples(layer, v.shape[2])
        for rows, pre_activations, t in (self._through_samples if fewer else self._through_parameters)(layer, v):
            g = layer.backward[rows][..., pre_activations].double()
            to[rows] += torch.einsum("xsim,xsvm->xiv", g, t)

    def quadratic(self, batch: KernelBatch, v: Tensor) -> Tensor:
        """v^T K v for each column: ||J^T v||^2, or from K v."""
        forms = v.new_zeros(v.shape[2])
        for layer in batch.kernels()[0]:
            if self._goes_through_samples(layer, v.shape[2]):
                product = torch.zeros_like(v)
                self._add_product(product, layer, v)
                forms += self.sum((v * product).sum((0, 1)))
                continue
            for _, weight, sums in self._weights(layer, v):
                forms += weight.square().sum((1, 2)) + layer.bias * sums.square().sum(1)
        return forms

    def _goes_through_samples(self, layer: Layer, columns: int) -> bool:
        return fewer_bytes_through_samples(
            LayerShape.of(layer), layer.forward.itemsize, columns, self.n, self.group.size
        )

    def _through_parameters(self, layer: Layer, v: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Slices of the samples here and of the pre-activations, and M_v a + b sum h there [rows, s, columns, m]."""
        (_, s, o, _), d, numbers = layer.backward.shape, layer.forward.shape[2], chunk_elements(v) // _PART
        for pre_activations, weight, sums in self._weights(layer, v):
            width = weight.shape[1]
            for rows in steps(self.count, numbers, s * max(d, max(o, v.shape[2]) * width)):
                t = torch.einsum("vmd,xsd->xsvm", weight, layer.forward[rows].double())
                yield rows, pre_activations, t + layer.bias * sums

    def _through_samples(self, layer: Layer, v: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """The same as sums of (<a, a'> + b) h' over the samples of all ranks, with h = sum_i v_i g^i."""
        (n, s, _, m), columns, numbers = layer.backward.shape, v.shape[2], chunk_elements(v) // _PART
        a = torch.cat(self.group.gather(layer.forward, self.counts)).double().flatten(0, 1)
        for some in steps(m, numbers, len(a) * columns):
            h = torch.einsum("xsim,xiv->xsvm", layer.backward[..., some].double(), v)
            h = torch.cat(self.group.gather(h, self.counts)).view(len(a), h.shape[2] * h.shape[3])
            for rows in steps(n, numbers, s * max(len(a), h.shape[1])):
                p = layer.forward[rows].double().flatten(0, 1) @ a.T + layer.bias
                yield rows, some, (p @ h).view(len(p) // s, s, columns, -1)

    def row_sums(self, batch: KernelBatch) -> Tensor:
        """K 1 of one kernel."""
        ones = torch.ones(self.count, batch.o, 1, dtype=torch.float64, device=batch.backward[0].device)
        return self.product(batch, ones)[..., 0]

    def _weights(self, layer: Layer, v: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """See `ops.plain.weight_gradients`, summed over the ranks."""
        numbers = chunk_elements(v) // _PART
        for pre_activations, weight, sums in weight_gradients(ThinFactors.of(layer), v, numbers):
            columns, width, d = weight.shape
            both = self.sum(torch.cat((weight.flatten(1), sums), 1))
            yield pre_activations, both[:, : width * d].view(columns, width, d), both[:, width * d :]

    # ---- pairs of samples

    def sum_over_pairs(
        self, tensors: Sequence[Tensor], part: Callable[[Sequence[Tensor], Pairs | None], Tensor], zero: Tensor
    ) -> Tensor:
        """See `Samples.sum_over_pairs`; parts are added in the order of the ranks, so that all have the same bits."""
        if self.group.size == 1:
            return part(tensors, None)
        joined = _Joined(tensors, self.most)
        ring = list(meetings(self.group.rank, self.counts))
        arrived = [joined.start(self.group, ring[0])]
        total = part(tensors, None) if self.count else zero
        for index, meeting in enumerate(ring):
            arrived.pop()()
            received = _length(meeting.receive)
            joined.take(received)
            arrived += [joined.start(self.group, one) for one in ring[index + 1 : index + 2]]
            if received and _length(meeting.own):
                total = total + part(joined.tensors(received), Pairs(meeting.own.stop, joined.second_begin))
        return torch.stack(self.group.gather(total.to(zero))).sum(0)


def bytes_joined(count: int, most: int, of_sample: int) -> int:
    """Bytes of the samples here and those of another rank twice, while they meet; see `_Joined`.

    Args:
        count: The number of samples here.
        most: The most samples of any rank.
        of_sample: Bytes of what there is of one sample.
    """
    return (_up_to_a_panel(count) + 2 * most) * of_sample


def _up_to_a_panel(count: int) -> int:
    panel: int = TILING["panel"]
    return -(-count // panel) * panel


def _length(samples: slice) -> int:
    length: int = samples.stop - samples.start
    return length


class _Joined:
    """Tensors of the samples here with those of another rank behind them, and room for the next ones.

    Args:
        tensors: What there is of each sample here, [count, ...].
        most: The most samples that come at a time.

    Attributes:
        second_begin: Where the samples of the other rank begin.
    """

    def __init__(self, tensors: Sequence[Tensor], most: int) -> None:
        count = len(tensors[0])
        self.second_begin = _up_to_a_panel(count)
        self._joined = [one.new_empty(self.second_begin + most, *one.shape[1:]) for one in tensors]
        self._coming = [one.new_empty(most, *one.shape[1:]) for one in tensors]
        for to, one in zip(self._joined, tensors, strict=True):
            to[:count] = one
            if count:  # samples up to a whole panel are like the others, so that means of all are near those of each
                rest = torch.arange(count, self.second_begin, device=one.device) % count
                to[count : self.second_begin] = to[rest]

    def start(self, group: Group, meeting: Meeting) -> Callable[[], None]:
        """Starts to send and to receive; returns what waits for it."""
        received = _length(meeting.receive)
        waiting = [
            group.shift(own[meeting.send], meeting.to, coming[:received], meeting.of)
            for own, coming in zip(self._joined, self._coming, strict=True)
        ]

        def wait() -> None:
            for one in waiting:
                one()

        return wait

    def take(self, received: int) -> None:
        """Puts what has come behind the samples here."""
        for to, coming in zip(self._joined, self._coming, strict=True):
            to[self.second_begin : self.second_begin + received] = coming[:received]

    def tensors(self, received: int) -> list[Tensor]:
        """The samples here and behind them so many others."""
        return [one[: self.second_begin + received] for one in self._joined]
