"""This package, by its public calls.

Kernels are `iter_tangent_kernels(...)` and `to_dense()`; the alignment never has a kernel in memory; the largest
eigenvalue comes from products with the factors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import EIGENVALUE_TOLERANCE

TITLE = "ours"
REQUIREMENTS = ()


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    import torch

    from benchmarks.common import ours

    model, (x, _), task = problem.torch_model(), problem.tensors(), problem.task
    target = problem.target_tensor()
    name = ours.layer_names(model, x)[problem.layer]

    def job(n: int) -> np.ndarray:
        if task.quantity == "alignment":
            return ours.layerwise(model, x[:n], target[:n]).numpy()
        if task.quantity == "top_eigenvalue":
            return ours.largest_eigenvalue(model, x[:n], name, EIGENVALUE_TOLERANCE).numpy()
        if task.quantity == "layer_kernels":
            rows = n * task.outputs
            out = torch.empty(task.depth, rows, rows, device=x.device)
            return ours.dense_kernels_at(out, model, x[:n]).cpu().numpy()
        layers = {"network": "*"} if task.quantity == "network_kernel" else [name]
        return next(ours.dense_kernels(model, x[:n], layers)).cpu().numpy()

    job(2)  # threads and libraries start with the first call
    return lambda: job(len(x))
