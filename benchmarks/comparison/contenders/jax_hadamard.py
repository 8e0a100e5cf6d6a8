"""The Hadamard form in one jax.jit: forward, batched cotangents, and what a task asks for.

Norms come with K in memory, or by pairs of blocks on and above the diagonal, in lax.map or unrolled, at the block size
that is best for the middle layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison.contenders import _hadamard_form
from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import EIGENVALUE_TOLERANCE

if TYPE_CHECKING:
    import torch

TITLE = "one jax.jit, Hadamard form"
BY_HAND = True
REQUIREMENTS = ("torch=={torch}", "jax{cuda}==0.10.2")
VARIANTS = ("K in memory", "symmetric panels, mapped", "symmetric panels, unrolled", "products from factors")
unable = _hadamard_form.unable
MOST_BLOCKS = 10  # unrolled; more take long to compile


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    import torch

    from benchmarks.comparison.contenders import _jax_network as jax_network

    task = problem.task
    model = Problem(task.on("cpu"), problem.x, problem.y, problem.weights).torch_model()  # jax chooses its own device
    x, y = torch.tensor(problem.x), torch.tensor(problem.targets)
    if task.quantity == "alignment":
        job = alignment_job(model, x, y, variant)
    elif task.quantity == "top_eigenvalue":
        materialised = variant == "K in memory"
        job = jax_network.largest_eigenvalue(model, x, task.outputs, problem.layer, EIGENVALUE_TOLERANCE, materialised)
    else:
        layer = problem.layer if task.quantity == "layer_kernel" else None
        job = jax_network.kernels(model, x, task.outputs, layer, task.quantity == "network_kernel")
    job()
    return lambda: np.asarray(job())


def alignment_job(model: torch.nn.Sequential, x: torch.Tensor, y: torch.Tensor, variant: str) -> Callable[[], object]:
    """The job at its best block size, which is chosen on the middle layer."""
    from benchmarks.common import plain_layer, timing
    from benchmarks.comparison.contenders import _jax_network as jax_network

    if variant == "K in memory":
        return jax_network.layerwise(jax_network.materialised, model, x, y)
    unrolled = variant == "symmetric panels, unrolled"
    sizes = [b for b in plain_layer.block_sizes(len(x)) if not unrolled or len(x) // b <= MOST_BLOCKS] or [len(x)]
    squares = {str(b): jax_network.symmetric(b, unrolled) for b in sizes}
    middle = list(model.parameters())[len(model) // 4]
    jobs = {name: jax_network.one_square(square, *middle.shape, *y.shape) for name, square in squares.items()}
    chosen = timing.fastest(jobs)[0] if len(jobs) > 1 else str(sizes[0])
    return jax_network.layerwise(squares[chosen], model, x, y)
