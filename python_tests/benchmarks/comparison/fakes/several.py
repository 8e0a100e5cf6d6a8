"""Has a slow variant, a wrong one, one that is killed after a fast one, and one that it cannot do."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import Task
from python_tests.benchmarks.comparison.fakes._right import kernel

TITLE = "several"
REQUIREMENTS = ()
VARIANTS = ("slow", "wrong", "fast", "hanging", "other")


def unable(task: Task, variant: str) -> str | None:
    return "not here" if variant == "other" else None


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    def job() -> np.ndarray:
        time.sleep({"slow": 0.1, "hanging": 60.0}.get(variant, 0.0))
        return (1.5 if variant == "wrong" else 1) * kernel(problem)

    print("libraries print", flush=True)
    return job
