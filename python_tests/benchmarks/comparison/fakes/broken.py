"""Raises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.comparison.problem import Problem
from python_tests.benchmarks.comparison.fakes._right import kernel

TITLE = "broken"
REQUIREMENTS = ()


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    def job() -> np.ndarray:
        raise ArithmeticError("no kernel today")

    kernel(problem)
    return job
