"""Takes longer than it may with more samples than it is warmed up on."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks.comparison.problem import Problem
from benchmarks.comparison.worker import WARM_UP
from python_tests.benchmarks.comparison.fakes._right import kernel

TITLE = "late"
REQUIREMENTS = ()


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    def job() -> np.ndarray:
        time.sleep(0.02 if len(problem.x) <= WARM_UP else 60)
        return kernel(problem)

    return job
