"""Layers that are taken together within a budget of memory. The standard library is enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

BUDGET = 3 * 2**30  # bytes


def groups(layers: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Consecutive layers whose sizes together stay within BUDGET, or one layer."""
    group: list[int] = []
    total = 0
    for layer, size in zip(layers, sizes, strict=True):
        if group and total + size > BUDGET:
            yield group
            group, total = [], 0
        group.append(layer)
        total += size
    if group:
        yield group
