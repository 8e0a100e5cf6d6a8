"""Takes its process down."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from benchmarks.comparison.problem import Problem
from python_tests.benchmarks.comparison.fakes._right import kernel

TITLE = "crashing"
REQUIREMENTS = ()


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    def job() -> np.ndarray:
        os.abort()

    kernel(problem)
    return job
