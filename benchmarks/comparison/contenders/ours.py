"""This package, by its public calls.

Kernels are `tangent_kernels(...)[layer].to_dense()`, whose factors are captured together; the alignment never has a kernel
in memory; the largest eigenvalue is from products with the factors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from comparison.problem import Problem
from comparison.tasks import Task

TITLE = "ours"
REQUIREMENTS = ()
VARIANTS = ("",)


def unable(task: Task, variant: str) -> str | None:
    return None


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    from common import ours

    model, (x, y) = problem.torch_model(), problem.tensors()
    names = ours.layer_names(model, x)
    if problem.task.quantity == "alignment":
        return lambda: ours.layerwise(model, x, y).numpy()
    raise NotImplementedError(names)
