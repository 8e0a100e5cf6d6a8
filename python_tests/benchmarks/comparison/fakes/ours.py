"""Right, at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.comparison.problem import Problem
from python_tests.benchmarks.comparison.fakes._right import kernel

TITLE = "ours"
REQUIREMENTS = ()


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    return lambda: kernel(problem)
