"""What a capture keeps of one layer, chunk by chunk: its factors, or its Jacobian instead of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from ahkernels.capture.plan import PlannedLayer
from ahkernels.capture.route import jacobian
from ahkernels.factors import LayerFactors, sums_over_positions

# All different words [k] of a layer, in order, from those of the samples here.
Vocabulary: TypeAlias = Callable[[Tensor], Tensor]


class Kept:
    """What is kept of one layer.

    Args:
        n: The number of all samples.
        layer: The layer; its route says what is kept.
        grams: Whether its forward and backward Gram are asked for.
        vocabulary: What gives the words of a layer whose forward factor is one-hot.
    """

    def __init__(self, n: int, layer: PlannedLayer, *, grams: bool, vocabulary: Vocabulary = torch.unique) -> None:
        self.layer, self._vocabulary = layer, vocabulary
        self._kept, self._sums = _Chunks(n), _Chunks(n)
        self._has_sums = grams and layer.rule is not None and layer.d > 0 and layer.as_jacobian

    def add_jacobian(self, found: Tensor) -> None:
        """Adds the Jacobian [r, n, 1, parameters] of all samples, or what takes its place."""
        n = found.shape[1]
        self._kept.add(slice(0, n), found.new_zeros(1).expand(n, 1, 0), found)

    def add_sums(self, samples: slice, block: Kept) -> None:
        """Adds what the Grams take of a block of samples that was captured on its own."""
        if self._has_sums:
            of_block = block.at_one_position or block.factors
            self._sums.add(samples, of_block.forward, of_block.backward.permute(2, 0, 1, 3))

    def add(self, samples: slice, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the factors a [k, s, d] and g [r, k, s, m] of a chunk.

        Returns:
            What is kept of them: themselves, or an empty a and the Jacobian.
        """
        if a.shape[2] == g.shape[3] == 0:  # not called for these samples
            self._kept.add(samples, a, g)
            self._sums.add(samples, a, g)
            return a, g
        if self._has_sums:
            a_sum, g_sum = sums_over_positions(a, g.permute(1, 2, 0, 3), self.layer.bias)
            self._sums.add(samples, a_sum, g_sum.permute(2, 0, 1, 3))
        if self.layer.as_jacobian:
            a, g = g.new_zeros(1).expand(len(a), 1, 0), jacobian(a, g, bias=self.layer.bias).unsqueeze(2)
        self._kept.add(samples, a, g)
        return a, g

    @functools.cached_property
    def factors(self) -> LayerFactors:
        """The factors of all samples."""
        a, g = self._kept.a, self._kept.g
        return LayerFactors(
            a if a.is_floating_point() else one_hot(a, g.dtype, self._vocabulary(a)),
            g.permute(1, 2, 0, 3),
            self.layer.as_jacobian or self.layer.bias,
            self.layer.name,
            by_jacobian=self.layer.route.name == "jacobian slices",
            root=object() if self.layer.alone else None,
            unchecked=True,
        )

    @property
    def at_one_position(self) -> LayerFactors | None:
        """Factors with one position and the same forward and backward Gram; None for a layer without."""
        if self._has_sums:
            a, g = self._sums.a, self._sums.g.permute(1, 2, 0, 3)
            return LayerFactors(a, g, False, self.layer.name, unchecked=True)
        return self.factors.at_one_position() if self.factors.factored else None


class _Chunks:
    """Factors of all samples, as far as they have come."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.a, self.g = torch.empty(0, 1, 0), torch.empty(0, 0, 1, 0)

    def add(self, samples: slice, a: Tensor, g: Tensor) -> None:
        """Adds a [k, s, d] and g [r, k, s, m]."""
        if len(a) == self.n:
            self.a, self.g = _read_in_rows(a), _read_in_rows(g)
            return
        nothing = 0 if a.is_floating_point() else -1  # no word
        if self.a.shape[2] == self.g.shape[3] == 0:
            self.a = a.new_full((self.n, *a.shape[1:]), nothing)
            self.g = g.new_zeros(len(g), self.n, *g.shape[2:])
        if a.shape[2] == g.shape[3] == 0:  # not called for these samples
            return
        missing = a.shape[1] - self.a.shape[1]
        if missing > 0:  # more positions than before; those that a sample lacks have a gradient of zero
            self.a = functional.pad(self.a, (0, 0, 0, missing), value=nothing)
            self.g = functional.pad(self.g, (0, 0, 0, missing))
        self.a[samples, : a.shape[1]] = a
        self.g[:, samples, : a.shape[1]] = g


def _read_in_rows(factor: Tensor) -> Tensor:
    """The same factor with the numbers of a position side by side, as products read them; mostly no copy."""
    return factor if factor.stride(-1) == 1 else factor.contiguous()


def one_hot(words: Tensor, dtype: torch.dtype, different: Tensor) -> Tensor:
    """One-hot vectors [n, s, d] of words [n, s, 1] among d different ones in order, without those that are -1."""
    found = torch.zeros(*words.shape[:2], len(different), dtype=dtype, device=words.device)
    found.scatter_(2, torch.searchsorted(different, words), 1)
    return found[:, :, 1:] if len(different) > 1 and different[0] < 0 else found.mul_(different >= 0)
