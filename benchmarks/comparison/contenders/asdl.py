"""ASDL (the package asdfghjkl).

Its functions for kernels of all pairs of outputs are no help here: empirical_direct_ntk and jacobian stop with an
error in this version, empirical_implicit_ntk has a backward pass for every row of K, and the Hadamard form is for
pairs of the same output; given a batch that holds every sample o times it has all of K, but no faster than what
follows. For the MLP it saves the inputs of all layers and the gradients of their outputs, in a backward pass for each
output without gradients of parameters, and the rest is plain torch; for the ResNet it has the gradients of each
sample of a batch that holds every sample o times, and K is their product. kernel_eigenvalues is its own power
iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import EIGENVALUE_TOLERANCE, Task

if TYPE_CHECKING:
    import torch

TITLE = "ASDL 0.1a5"
REQUIREMENTS = ("torch=={torch}", "asdfghjkl==0.1a5")
VARIANTS = ("completed in torch", "kernel_eigenvalues")
ITERATIONS = 1000


def unable(task: Task, variant: str) -> str | None:
    if variant == "kernel_eigenvalues" and task.quantity != "top_eigenvalue":
        return "for eigenvalues"
    return None


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    from benchmarks.comparison import completion

    if variant == "kernel_eigenvalues":
        return power_iteration(problem)
    if problem.task.network == "mlp":
        return completion.from_factors(problem, factors(problem))
    model = problem.torch_model()
    return completion.from_jacobians(problem, model, jacobians(model, problem.task.outputs))


def factors(problem: Problem) -> Callable[[Sequence[int]], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Inputs and cotangents of these layers, from the first one's input on."""
    import torch
    from asdl import save_inputs_outgrads, skip_param_grad

    model, (x, _) = problem.torch_model(), problem.tensors()

    def of_layers(layers: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        rest = model[2 * layers[0] :]
        with torch.no_grad():
            h = model[: 2 * layers[0]](x)
        h.requires_grad_()
        modules = rest[: 2 * len(layers) : 2]
        with save_inputs_outgrads(rest, targets=list(modules)) as saved:
            with skip_param_grad(rest):
                for output in rest(h).sum(0):
                    torch.autograd.grad(output, h, retain_graph=True)
            return [(saved.in_data(one)[0], torch.stack(saved.out_grads(one), 1)) for one in modules]

    return of_layers


def jacobians(model: torch.nn.Module, o: int) -> Callable[[Sequence[int], torch.Tensor], list[torch.Tensor]]:
    import torch
    from asdl import extend
    from asdl.operations import OP_BATCH_GRADS

    from benchmarks.comparison import completion

    layers = completion.layers_of(model)

    def of_samples(group: Sequence[int], x: torch.Tensor) -> list[torch.Tensor]:
        copies, outputs = completion.repeated(x, o)
        own = [layers[index] for index in group]
        with extend(model, *((layer, OP_BATCH_GRADS) for layer in own)) as saved:
            total = model(copies).gather(1, outputs).sum()
            torch.autograd.grad(total, [p for layer in own for p in layer.parameters(recurse=False)])
            return [saved.batch_grads(layer, flatten=True) for layer in own]

    return of_samples


def power_iteration(problem: Problem) -> Callable[[], np.ndarray]:
    """ASDL's power iteration on the network from the layer on, with that layer's parameters alone."""
    import torch
    from asdl import kernel_eigenvalues

    model, (x, _) = problem.torch_model(), problem.tensors()
    head, rest = model[: 2 * problem.layer], model[2 * problem.layer :]
    for parameter in rest[1:].parameters():
        parameter.requires_grad_(False)

    class OfOneLayer(torch.nn.Module):
        def parameters(self, recurse: bool = True):
            return rest[0].parameters()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return rest(x)

    def job() -> np.ndarray:
        with torch.no_grad():
            h = head(x)
        (found,) = kernel_eigenvalues(OfOneLayer(), h, max_iters=ITERATIONS, tol=EIGENVALUE_TOLERANCE)
        return found.detach().reshape(1).cpu().numpy()

    return job
