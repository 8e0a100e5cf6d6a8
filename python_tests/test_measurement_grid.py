"""The iterations at which a training run is measured."""

from __future__ import annotations

import itertools

import pytest

import ahkernels as ah


def test_evenly_in_the_logarithm():
    assert ah.measurement_grid(1000, 5) == [0, 1, 10, 100, 1000]
    assert ah.measurement_grid(1200, 2) == [0, 1200]
    assert ah.measurement_grid(3, 25) == [0, 1, 2, 3]
    for total in (1, 2, 7, 100, 12_345):
        for count in (2, 3, 10, 40):
            grid = ah.measurement_grid(total, count)
            assert len(grid) == min(count, total + 1) and grid[0] == 0 and grid[-1] == total
            assert all(earlier < later for earlier, later in itertools.pairwise(grid))


@pytest.mark.parametrize(("total", "count", "argument"), [(0, 5, "total"), (5, 1, "count")])
def test_refuses(total, count, argument):
    with pytest.raises(ValueError, match=f"{argument}: expected at least"):
        ah.measurement_grid(total, count)
