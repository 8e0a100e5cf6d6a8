"""Off by one percent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.comparison.problem import Problem
from python_tests.benchmarks.comparison.fakes._right import kernel

TITLE = "wrong"
REQUIREMENTS = ()


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    return lambda: 1.01 * kernel(problem)
