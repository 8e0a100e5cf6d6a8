"""Exponents of a contender's costs over the sizes of a sweep."""

from __future__ import annotations

import pytest

from benchmarks.comparison import scaling


def test_exponents_are_of_the_larger_half() -> None:
    sizes = (1, 2, 4, 8, 16, 32, 64)
    seconds = tuple(1.0 if size < 8 else 3 * size**1.5 for size in sizes)
    curve = scaling.Curve("a", "A", sizes, seconds, (1,) * 7, tuple(size**2.0 for size in sizes), None)
    assert curve.fitted == (8, 16, 32, 64)
    assert curve.exponent(curve.seconds) == pytest.approx(1.5)
    assert curve.exponent(curve.flops) == pytest.approx(2)
    assert curve.exponent(curve.bytes) == pytest.approx(0)
    assert scaling.Curve("a", "A", (1, 2), (1.0, 2.0), (1, 1), (1.0, 2.0), None).exponent((1.0, 2.0)) is None
