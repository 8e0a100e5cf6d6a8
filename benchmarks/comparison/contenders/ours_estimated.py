"""This package where all entries of the kernels are too many: norms estimated from products with them.

The result has a standard error, of 1e-2 and less at this number of products, and says so (`cka_standard_error`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import Task

PRODUCTS = 30
FROM = 2048  # samples; below, the exact pass is as fast

TITLE = f"ours, estimate from {PRODUCTS} products"
REQUIREMENTS = ()
ESTIMATES = True


def unable(task: Task, variant: str) -> str | None:
    if task.quantity != "alignment" or task.network != "mlp":
        return "an estimate of alignments"
    return None if task.n >= FROM else f"meant for n from {FROM}"


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    from benchmarks.common import ours

    model, (x, _), target = problem.torch_model(), problem.tensors(), problem.target_tensor()
    ours.layerwise(model, x[:64], target[:64], PRODUCTS)  # threads and libraries start with the first call
    return lambda: ours.layerwise(model, x, target, PRODUCTS).numpy()
