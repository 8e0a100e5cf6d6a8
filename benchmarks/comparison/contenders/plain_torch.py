"""The Hadamard form in plain torch, as well as a good user can write it, in about twenty lines.

Factors by hand or by batched autograd, whichever is faster. Norms with K in memory, by panels of rows, or by panels
right of the diagonal, eager or compiled, at the block size that is best for the middle layer; or everything in one
torch.compile, for short calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison.contenders import _hadamard_form
from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import EIGENVALUE_TOLERANCE, Task

if TYPE_CHECKING:
    import torch

TITLE = "plain torch, Hadamard form"
BY_HAND = True
REQUIREMENTS = ()
VARIANTS = (
    "K in memory",
    "panels of rows",
    "symmetric panels",
    "symmetric panels, compiled",
    "one torch.compile",
    "products from factors",
)
COMPILED_UP_TO = 64  # samples; beyond, forming all of every K costs more than the compiler saves
COMPILED_DEPTHS = (10, 20)  # layers; fewer have few calls to save, and the unrolled graph of more takes minutes


def unable(task: Task, variant: str) -> str | None:
    if variant == "one torch.compile" and task.network == "mlp":
        least, most = COMPILED_DEPTHS
        if task.quantity == "top_eigenvalue":
            return "an iteration"
        if task.n > COMPILED_UP_TO or not least <= task.depth <= most:
            return f"compiled up to n = {COMPILED_UP_TO} at depths {least} to {most}"
    return _hadamard_form.unable(task, variant)


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    model, (x, _), task = problem.torch_model(), problem.tensors(), problem.task
    target = problem.target_tensor()
    if "compile" in variant:
        import torch

        torch.compiler.reset()  # it compiles a function for so many tasks and then no more
    if task.quantity == "alignment":
        job = alignment_job(model, x, target, variant)
    elif task.quantity == "top_eigenvalue":
        job = eigenvalue_job(model, x, problem.layer, variant)
    else:
        from benchmarks.common import plain_network

        options = {
            "layer": problem.layer if task.quantity == "layer_kernel" else None,
            "summed": task.quantity == "network_kernel",
        }
        if variant == "one torch.compile":
            job = plain_network.compiled_kernels(model, x, task.outputs, **options)
        else:
            job = partial(plain_network.kernels, model, x, **options)
        plain_network.kernels(model, x[:2], **options)
    if variant == "one torch.compile":
        job()
    return lambda: job().cpu().numpy()


def alignment_job(
    model: torch.nn.Sequential, x: torch.Tensor, y: torch.Tensor, variant: str
) -> Callable[[], torch.Tensor]:
    """The job at its best capture and block size."""
    from benchmarks.common import plain_layer, plain_network, timing

    if variant == "one torch.compile":
        return plain_network.compiled(model, x, y)
    captures = {"by hand": plain_network.by_hand, "autograd": plain_network.by_autograd}
    chosen, _ = timing.fastest({name: partial(capture, model, x) for name, capture in captures.items()})
    if variant == "K in memory":
        moments = plain_layer.materialised
        plain_network.layerwise(plain_network.by_hand, moments, model, x[:2], y[:2])
    else:
        onednn = (False, True) if x.device.type == "cpu" and variant == "symmetric panels" else (False,)
        panel = plain_layer.compiled_panel if variant == "symmetric panels, compiled" else plain_layer.eager_panel
        of_variant = partial(plain_layer.blocked, symmetric=variant != "panels of rows", panel=panel)
        options = [partial(of_variant, block=b, onednn=one) for b in plain_layer.block_sizes(len(x)) for one in onednn]
        factors = plain_network.by_hand(model, x)
        a, g = factors[len(factors) // 2]
        jobs = {str(index): partial(option, a, g, y) for index, option in enumerate(options)}
        moments = options[int(timing.fastest(jobs)[0])]
    return partial(plain_network.layerwise, captures[chosen], moments, model, x, y)


def eigenvalue_job(model: torch.nn.Sequential, x: torch.Tensor, layer: int, variant: str) -> Callable[[], torch.Tensor]:
    """Lanczos with K, or with thin products."""
    import torch

    from benchmarks.common import plain_layer, plain_network
    from benchmarks.comparison import lanczos

    def job(x: torch.Tensor) -> torch.Tensor:
        a, g = plain_network.by_hand(model, x, layer)[0]
        if variant == "products from factors":
            product = partial(plain_layer.product, a, g)
        else:
            product = partial(torch.mv, plain_layer.dense(a, g))
        return lanczos.largest_eigenvalue(product, g.new_ones(g.shape[0] * g.shape[1]), EIGENVALUE_TOLERANCE)

    job(x[:2])
    return lambda: job(x)
