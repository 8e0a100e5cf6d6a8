"""Asks for 8 GiB."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.comparison.problem import Problem
from python_tests.benchmarks.comparison.fakes._right import kernel

TITLE = "greedy"
REQUIREMENTS = ()


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    def job() -> np.ndarray:
        return np.ones(1 << 30)[:1] + kernel(problem)

    return job
