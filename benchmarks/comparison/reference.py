"""The value every contender is held to: float64 throughout.

Plain torch in the Hadamard form for the MLP; for networks with convolutions this package in float64, beside which the
Jacobian contenders stand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import EIGENVALUE_TOLERANCE

TITLE = "float64"
REQUIREMENTS = ()


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    import torch

    from benchmarks.common import plain_layer, plain_network
    from benchmarks.comparison import lanczos

    problem = problem.in_float64()
    model, (x, _), task, target = problem.torch_model(), problem.tensors(), problem.task, problem.target_tensor()
    if task.network != "mlp":
        from benchmarks.common import ours

        return lambda: ours.layerwise(model, x, target).numpy()
    if task.quantity == "alignment":
        moments = partial(plain_layer.blocked, block=plain_layer.block_sizes(task.n)[-1])
        return lambda: plain_network.layerwise(plain_network.by_hand, moments, model, x, target).numpy()

    def job() -> torch.Tensor:
        if task.quantity == "top_eigenvalue":
            k = plain_network.kernels(model, x, problem.layer)
            return lanczos.largest_eigenvalue(k.mv, k.new_ones(len(k)), EIGENVALUE_TOLERANCE / 10)
        layer = problem.layer if task.quantity == "layer_kernel" else None
        return plain_network.kernels(model, x, layer, task.quantity == "network_kernel")

    return lambda: job().cpu().numpy()
