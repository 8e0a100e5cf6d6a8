"""Opacus: gradients of each sample of a batch, of which K is the product.

The batch holds every sample o times, each copy for one output, so that a single backward pass gives the Jacobian of all
layers that fit in memory at once. Norms of the ResNet, which it refuses because they have buffers, are replaced by
modules of the same values without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison.problem import Problem

if TYPE_CHECKING:
    import torch

TITLE = "Opacus 1.6"
REQUIREMENTS = ("torch=={torch}", "opacus==1.6.0")


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    from benchmarks.comparison import completion

    # Opacus only measures modules in training mode; here that changes no value.
    model = completion.with_frozen_norms(problem.torch_model()).train()
    return completion.from_jacobians(problem, model, jacobians(model, problem.task.outputs))


def jacobians(model: torch.nn.Module, o: int) -> Callable[[Sequence[int], torch.Tensor], list[torch.Tensor]]:
    import torch
    from opacus.grad_sample import GradSampleModule

    from benchmarks.comparison import completion

    layers = completion.layers_of(model)

    def of_samples(group: Sequence[int], x: torch.Tensor) -> list[torch.Tensor]:
        for index, layer in enumerate(layers):
            layer.requires_grad_(index in group)
        measured = GradSampleModule(model, loss_reduction="sum")
        copies, outputs = completion.repeated(x, o)
        own = [list(layers[index].parameters(recurse=False)) for index in group]
        measured(copies).gather(1, outputs).sum().backward()
        found = [torch.cat([p.grad_sample.flatten(1) for p in parameters], 1) for parameters in own]
        measured.to_standard_module()
        for parameters in own:
            for parameter in parameters:
                parameter.grad = None
        return found

    return of_samples
