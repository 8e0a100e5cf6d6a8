"""How much a capture holds: the memory budget, divided into what is kept of layers and what a call of the model needs.

A pass keeps the factors of its layers. While it runs it also holds a chunk of samples: what the operations of the model
compute for them, and their gradients at the layers. Samples are taken in chunks that fit a quarter of the budget, and
at most what keeps the processor busy. A layer that does not fit comes in blocks of samples, which take what is left
beside K.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ahkernels.capture.plan import PlannedLayer

# What a chunk of samples may take. On a CPU half of it slows image networks, which then have one sample in a chunk, and
# more gains little; devices take larger ones, which keep them busy.
_CHUNK_BYTES = 256 << 20
_DEVICE_CHUNK_BYTES = 1 << 30

# Of what blocks of samples may take, the share of one that stays while all samples after it come in other blocks. A
# larger share takes fewer passes over the model, and a smaller one has Jacobians formed less often.
_SHARE_OF_ROWS = 0.75


@dataclass(frozen=True)
class Memory:
    """The division of a memory budget.

    Attributes:
        budget: Bytes.
        n: The number of samples.
        r: The number of cotangents.
        item: Bytes of a number.
        bytes_per_sample: What the operations of the model compute for one sample.
        device: Where the model is.
        most: The most samples that a process has, for which layers are planned alike in all of them.
    """

    budget: int
    n: int
    r: int
    item: int
    bytes_per_sample: int
    device: torch.device
    most: int

    @property
    def samples(self) -> slice:
        """All samples."""
        return slice(0, self.n)

    @property
    def work(self) -> int:
        """Bytes for a chunk of samples."""
        return min(_CHUNK_BYTES if self.device.type == "cpu" else _DEVICE_CHUNK_BYTES, max(1, self.budget // 4))

    @property
    def kept(self) -> int:
        """Bytes for what one pass keeps of its layers."""
        return self.budget - self.work

    def kept_of(self, layers: Sequence[PlannedLayer]) -> int:
        """Bytes that are kept of layers."""
        return self.item * sum(layer.route.numbers for layer in layers)

    def held_by_pass(self, layers: Sequence[PlannedLayer]) -> int:
        """Bytes that a pass over layers holds at most: what is kept of them, and a chunk of samples beside that."""
        cut = [layer for layer in layers if layer.alone]
        with_rule = [layer for layer in layers if layer.rule is not None and layer not in cut]
        whole = sum(layer.m for layer in layers if layer.rule is None and layer not in cut)
        chunk = self._held_by_chunk(with_rule, self.samples)
        for layer in cut:
            for block, _ in self.blocks(layer) if layer.in_blocks else ():
                chunk = max(chunk, self._held_by_chunk([layer.of_block], block))
        for parameters in (whole, *(layer.m for layer in cut if layer.rule is None and layer.route.name == "root")):
            chunks, at_once = self.fallback_chunks(parameters)
            of_sample, of_cotangent = self._of_fallback(parameters)
            chunk = max(chunk, _length(max(chunks, key=_length)) * (of_sample + at_once * of_cotangent))
        return max(self.kept_of(layers), self.kept if cut else 0) + chunk

    def _held_by_chunk(self, layers: Sequence[PlannedLayer], samples: slice) -> int:
        """Bytes that the largest chunk of some samples holds."""
        return self.held_by_samples(layers, max(map(_length, self.chunks(layers, samples))))

    def held_by_samples(self, layers: Sequence[PlannedLayer], samples: int) -> int:
        """Bytes that a recorded call of the model holds, with the gradients of layers, beyond what is kept of them."""
        numbers = [layer.positions * layer.m for layer in layers]
        gradients = self.r * self.item * 2 * max(numbers, default=0)
        if samples < self.n or any(layer.as_jacobian for layer in layers):  # they are not what is kept
            # Those of a layer whose rule forms its Jacobian are not as large as that.
            gradients += self.r * self.item * sum(layer.positions * layer.m for layer in layers if layer.d > 0)
        return samples * (2 * self.bytes_per_sample + gradients)

    def chunks(self, layers: Sequence[PlannedLayer], samples: slice) -> list[slice]:
        """Cuts samples into chunks of nearly one size that fit, for a pass over layers with a rule."""
        if self.held_by_samples(layers, _length(samples)) <= self.work:
            return [samples]
        return _cut(samples, self.work // max(1, self.held_by_samples(layers, 1)))

    def blocks(self, layer: PlannedLayer) -> Iterator[tuple[slice, list[slice]]]:
        """Cuts the samples for a layer that is captured in blocks.

        Yields:
            A block of the samples, and smaller ones of all samples after it. One and another fit into what is kept,
            beside K in float64.
        """
        room = self.kept - torch.float64.itemsize * layer.route.numbers
        most = room * self.n // max(1, self.kept_of([layer.of_block]))
        rows = max(1, int(_SHARE_OF_ROWS * most))
        for block in _cut(self.samples, rows):
            yield block, _cut(slice(block.stop, self.n), most - rows)

    def fallback_chunks(self, parameters: int) -> tuple[list[slice], int]:
        """Cuts the samples into chunks for Jacobians of so many parameters; and how many cotangents go at once."""
        of_sample, of_cotangent = self._of_fallback(parameters)
        at_once = min(self.r, max(1, (self.work - of_sample) // max(1, of_cotangent)))
        return _cut(self.samples, self.work // max(1, of_sample + at_once * of_cotangent)), at_once

    def _of_fallback(self, parameters: int) -> tuple[int, int]:
        """Bytes that the fallback holds for a sample, and those for each cotangent that goes at once."""
        # The gradients of a parametrisation's output come beside those of its parameters.
        of_sample = self.bytes_per_sample + 2 * self.r * parameters * self.item
        return of_sample, self.bytes_per_sample + parameters * self.item


def _cut(samples: slice, most: int) -> list[slice]:
    """Cuts samples into the fewest parts of so many at most, of nearly one size; none into no parts."""
    parts = -(-_length(samples) // max(1, most))
    ends = [samples.start + _length(samples) * part // max(1, parts) for part in range(parts + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(ends)]


def _length(samples: slice) -> int:
    length: int = samples.stop - samples.start
    return length


def return_freed_memory() -> None:
    """Returns to the system what was freed between two passes, or two parts of one.

    The GNU C library keeps freed blocks below 32 MiB, and where they cannot be used again they add up: to 50 MiB in a
    transformer with a budget of 64 MiB.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
