"""TorchJD, by either of its engines.

autogram has Gramians of Jacobians: an engine for each layer, all on one forward pass, each with its own batched
backward pass as far as its layer; norms of the ResNet are replaced as its documentation advises. autojac has
Jacobians with respect to any tensor: those to the preactivations of all layers, o cotangents in one batch, are the
layers' factors, and the rest is plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import Task

if TYPE_CHECKING:
    import torch

TITLE = "TorchJD 0.18"
REQUIREMENTS = ("torch=={torch}", "torchjd==0.18")
VARIANTS = ("autogram", "autojac to preactivations")


def unable(task: Task, variant: str) -> str | None:
    if variant == "autojac to preactivations" and task.network != "mlp":
        return "gives factors, which are kernels for dense layers alone"
    return None


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    from benchmarks.comparison import completion

    if variant == "autojac to preactivations":
        return completion.from_factors(problem, factors(problem))
    from torchjd.autogram import Engine

    model, (x, _) = completion.with_frozen_norms(problem.torch_model()), problem.tensors()
    layers = completion.layers_of(model)
    if problem.task.quantity in ("layer_kernel", "top_eigenvalue"):
        engines = {problem.layer: Engine(layers[problem.layer], batch_dim=0)}
    elif problem.task.quantity == "network_kernel":
        engines = {None: Engine(model, batch_dim=0)}
    else:
        engines = {index: Engine(layer, batch_dim=0) for index, layer in enumerate(layers)}

    def kernels(layers: Sequence[int]) -> Iterator[torch.Tensor]:
        output = model(x)
        for layer in layers:
            yield engines[layer].compute_gramian(output)

    return completion.from_kernels(problem, len(layers), kernels, lambda: engines[None].compute_gramian(model(x)))


def factors(problem: Problem) -> Callable[[Sequence[int]], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Inputs and cotangents of these layers, from the first one's input on."""
    import torch
    from torchjd.autojac import jac

    model, (x, _), o = problem.torch_model(), problem.tensors(), problem.task.outputs
    cotangents = torch.eye(o, device=x.device)[:, None].expand(o, len(x), o).contiguous()
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    def of_layers(layers: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        inputs, outputs = [], []
        h = model[: 2 * layers[0]](x)
        for index, module in enumerate(model[2 * layers[0] :]):
            if index % 2 == 0 and len(inputs) < len(layers):
                inputs.append(h.detach())
                h = module(h)
                outputs.append(h if h.requires_grad else h.requires_grad_())
            else:
                h = module(h)
        gradients = jac(h, outputs, jac_outputs=cotangents)
        return [(a, g.transpose(0, 1)) for a, g in zip(inputs, gradients, strict=True)]

    return of_layers
