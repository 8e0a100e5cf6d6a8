"""BackPACK, in one backward pass whose hook takes what it needs of each module and frees the rest.

For the MLP, the square root of the generalised Gauss-Newton matrix of a square loss, which is the Jacobian: it
propagates all o cotangents in one batch. It is asked of biases, which are added as zeros: theirs are the cotangents
of their layers, and with the inputs that BackPACK keeps the rest is plain torch. For the ResNet, whose functional
activations that square root cannot pass, the gradients of each sample of a batch that holds every sample o times,
multiplied by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison.problem import Problem

if TYPE_CHECKING:
    import torch

TITLE = "BackPACK 1.7.1"
REQUIREMENTS = ("torch=={torch}", "backpack-for-pytorch==1.7.1")


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    from benchmarks.comparison import completion

    if problem.task.network == "mlp":
        return completion.from_factors(problem, factors(problem))
    return from_sample_gradients(problem)


def factors(problem: Problem) -> Callable[[Sequence[int]], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Inputs and cotangents of these layers."""
    import torch
    from backpack import backpack, extend
    from backpack.extensions import SqrtGGNExact

    model, (x, _) = problem.torch_model(), problem.tensors()
    for layer in model[::2]:
        layer.weight.requires_grad_(False)
        layer.bias = torch.nn.Parameter(x.new_zeros(len(layer.weight)))
    model, loss = extend(model), extend(torch.nn.MSELoss(reduction="sum"))
    root = 2**0.5  # of the second derivative of a square

    def of_layers(layers: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        own = [model[2 * index] for index in layers]
        for layer in model[::2]:
            layer.bias.requires_grad_(layer in own)
        found = {}

        def take(module: torch.nn.Module) -> None:
            if module in own:
                found[module] = module.input0.detach(), module.bias.sqrt_ggn_exact.transpose(0, 1) / root
                del module.bias.sqrt_ggn_exact

        with backpack(SqrtGGNExact(), extension_hook=take):
            output = model(x)
            loss(output, output.detach()).backward()
        return [found[layer] for layer in own]

    return of_layers


def from_sample_gradients(problem: Problem) -> Callable[[], np.ndarray]:
    """One pass for all layers if the largest Jacobian fits in memory."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    from benchmarks.comparison import completion
    from benchmarks.comparison.grouping import BUDGET

    model, (x, _), o = extend(problem.torch_model()), problem.tensors(), problem.task.outputs
    layers = completion.layers_of(model)

    def visit(
        group: Sequence[int], x: torch.Tensor, take: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[torch.Tensor]:
        """The result of `take` for the Jacobian of each layer."""
        import torch

        own = {layers[index]: index for index in group}
        for layer in layers:
            layer.requires_grad_(layer in own)
        found = {}

        def visit_module(module: torch.nn.Module) -> None:
            if module in own:
                parameters = list(module.parameters(recurse=False))
                found[module] = take(torch.cat([p.grad_batch.flatten(1) for p in parameters], 1))
                for parameter in parameters:
                    del parameter.grad_batch

        with backpack(BatchGrad(), extension_hook=visit_module):
            copies, outputs = completion.repeated(x, o)
            model(copies).gather(1, outputs).sum().backward()
        for layer in own:
            layer.zero_grad()
        return [found[layer] for layer in own]

    largest = max(sum(p.numel() for p in layer.parameters(recurse=False)) for layer in layers)
    if 4 * len(x) * o * largest > BUDGET:
        return completion.from_jacobians(problem, model, lambda group, x: visit(group, x, lambda j: j))
    return completion.from_kernels(problem, len(layers), lambda group: visit(group, x, lambda j: j @ j.T))
