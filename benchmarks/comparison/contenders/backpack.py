"""BackPACK: the square root of the generalised Gauss-Newton matrix of a square loss, which is the Jacobian.

It comes from a single backward pass with all o cotangents. For the MLP it is asked of biases, which are added as zeros:
theirs are the cotangents of their layers, and with the inputs that BackPACK keeps the rest is plain torch. For the ResNet
it is asked of all parameters, and a hook multiplies it by itself and frees it as soon as a module has been passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from comparison.problem import Problem
from comparison.tasks import Task

if TYPE_CHECKING:
    import torch

TITLE = "BackPACK 1.7.1"
REQUIREMENTS = ("torch=={torch}", "backpack-for-pytorch==1.7.1")
VARIANTS = ("",)


def unable(task: Task, variant: str) -> str | None:
    return None


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    from comparison import completion

    if problem.task.network == "mlp":
        return completion.from_factors(problem, factors(problem))
    model, (x, _) = problem.torch_model(), problem.tensors()
    raise NotImplementedError


def factors(problem: Problem) -> Callable[[Sequence[int]], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Inputs and cotangents of these layers, from the first one's input on."""
    import torch
    from backpack import backpack, extend
    from backpack.extensions import SqrtGGNExact

    model, (x, _) = problem.torch_model(), problem.tensors()
    for layer in model[::2]:
        layer.weight.requires_grad_(False)
        layer.bias = torch.nn.Parameter(x.new_zeros(len(layer.weight)))
    model, loss = extend(model), extend(torch.nn.MSELoss(reduction="sum"))

    def of_layers(layers: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        for index, layer in enumerate(model[::2]):
            layer.bias.requires_grad_(index in layers)
        with backpack(SqrtGGNExact()):
            output = model(x)
            loss(output, output.detach()).backward()
        own = [model[2 * index] for index in layers]
        root = 2**-0.5  # the second derivative of a square is 2
        found = [(one.input0, one.bias.sqrt_ggn_exact.transpose(0, 1) * root) for one in own]
        for one in own:
            del one.bias.sqrt_ggn_exact
        return found

    return of_layers
