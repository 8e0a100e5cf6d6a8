"""torch.func, as in torch's tutorial on tangent kernels.

Jacobians by vmap over jacrev, of one layer at a time or of all at once, contracted by GEMMs; or NTK-vector products, a
vjp followed by a jvp of the whole batch, for the columns of K and for its largest eigenvalue. Alignments are computed
from K, centered before squaring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import EIGENVALUE_TOLERANCE, Task

if TYPE_CHECKING:
    import torch

TITLE = "torch.func"
REQUIREMENTS = ()
VARIANTS = ("Jacobians all at once", "Jacobians layer by layer", "NTK-vector products")
COLUMNS = 128  # of K, formed at a time by NTK-vector products
CHUNKS = {"Jacobians layer by layer": 4, "Jacobians all at once": 16}  # images at a time, the best of 1, 4 and 16


def unable(task: Task, variant: str) -> str | None:
    one_layer = task.quantity in ("layer_kernel", "top_eigenvalue")
    if variant == "NTK-vector products" and not one_layer and task.quantity != "network_kernel":
        return "as many products for every layer as K has rows"
    if variant == "Jacobians all at once" and one_layer:
        return "one layer is asked for"
    return None


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    from benchmarks.common import jacobians

    model, (x, _), task = problem.torch_model(), problem.tensors(), problem.task
    target = problem.target_tensor()
    chunk = None if task.network == "mlp" else CHUNKS.get(variant)
    layers = list(jacobians.layers_of(model).values())
    if variant == "NTK-vector products":
        names = (
            [name for layer in layers for name in layer] if task.quantity == "network_kernel" else layers[problem.layer]
        )
        by_products(model, names, x[:2], task)
        return lambda: by_products(model, names, x, task).cpu().numpy()

    def job(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        at_once = variant == "Jacobians all at once"
        if task.quantity == "alignment":
            return (jacobians.all_at_once if at_once else jacobians.layer_by_layer)(model, x, y, chunk)
        return from_jacobians(model, layers, problem.layer, x, task, at_once)

    job(x[:2], target[:2])
    return lambda: job(x, target).cpu().numpy()


def from_jacobians(
    model: torch.nn.Module, layers: list[list[str]], middle: int, x: torch.Tensor, task: Task, at_once: bool
) -> torch.Tensor:
    """The value of every task besides alignments."""
    import torch

    from benchmarks.common import jacobians
    from benchmarks.comparison import lanczos

    def kernel(names: list[str]) -> torch.Tensor:
        return jacobians.kernel(jacobians.jacobian(model, names, x, None).values())

    if task.quantity == "layer_kernel":
        return kernel(layers[middle])
    if task.quantity == "top_eigenvalue":
        k = kernel(layers[middle])
        return lanczos.largest_eigenvalue(k.mv, k.new_ones(len(k)), EIGENVALUE_TOLERANCE)
    if at_once:
        parts = jacobians.jacobian(model, [name for layer in layers for name in layer], x, None)
        if task.quantity == "network_kernel":
            return jacobians.kernel(parts.values())
        return torch.stack([jacobians.kernel([parts[name] for name in layer]) for layer in layers])
    if task.quantity == "network_kernel":
        total = kernel(layers[0])
        for layer in layers[1:]:
            total += kernel(layer)
        return total
    return torch.stack([kernel(layer) for layer in layers])


def by_products(model: torch.nn.Module, names: list[str], x: torch.Tensor, task: Task) -> torch.Tensor:
    """K from its products with unit vectors, or its largest eigenvalue from a few."""
    import torch
    from torch.func import functional_call, jvp, vjp, vmap

    from benchmarks.comparison import lanczos

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    own = {name: parameters.pop(name) for name in names}
    rows = len(x) * task.outputs

    def f(own: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(model, {**parameters, **own}, (x,))

    def product(v: torch.Tensor) -> torch.Tensor:
        (gradient,) = vjp(f, own)[1](v.view(len(x), task.outputs))
        return jvp(f, (own,), (gradient,))[1].reshape(rows)

    if task.quantity == "top_eigenvalue":
        return lanczos.largest_eigenvalue(product, x.new_ones(rows), EIGENVALUE_TOLERANCE)
    return vmap(product, chunk_size=COLUMNS)(torch.eye(rows, device=x.device))
