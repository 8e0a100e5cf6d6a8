"""When to measure a training run: early often, later rarely."""

from __future__ import annotations

import numbers


def measurement_grid(total: int, count: int) -> list[int]:
    """Iterations to measure at: 0, 1, then evenly in the logarithm up to `total`.

    Args:
        total: The last iteration, at least 1.
        count: How many iterations, at least 2; there are never more than total + 1.

    Returns:
        min(count, total + 1) distinct iterations in ascending order; both ends are always among them.

    Raises:
        TypeError: If an argument is no whole number.
        ValueError: If an argument is too small.

    Example:
        >>> measurement_grid(1000, 5)
        [0, 1, 10, 100, 1000]
    """
    for name, value, least in (("total", total, 1), ("count", count, 2)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name}: expected a whole number of at least {least}, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if count == 2:
        return [0, total]
    grid = [0, 1]
    for left in range(min(count, total + 1) - 2, 0, -1):
        # The geometric step that would end at the total, but always a whole iteration at least.
        grid.append(max(grid[-1] + 1, round(grid[-1] * (total / grid[-1]) ** (1 / left))))
    return grid
