"""Takes longer than it may, from more than 3 samples on."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks.comparison.problem import Problem
from python_tests.benchmarks.comparison.fakes._right import kernel

TITLE = "late"
REQUIREMENTS = ()


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    def job() -> np.ndarray:
        time.sleep(0.02 if len(problem.x) <= 3 else 60)
        return kernel(problem)

    return job
