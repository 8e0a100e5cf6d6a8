"""Cannot do it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import Task

TITLE = "absent"
REQUIREMENTS = ()


def unable(task: Task, variant: str) -> str | None:
    return "only for convolutions"


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    raise NotImplementedError
