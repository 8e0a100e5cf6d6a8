"""curvlinops: products with Jacobians and their transposes, as linear operators.

K is formed from the transposed Jacobian of each sample times the identity, o columns in one batch: products with that
of all samples would have n times as many, most of them zero. The largest eigenvalue takes a few products with J J^T
of all samples, in SciPy's Lanczos iteration, as its documentation has it for other operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import EIGENVALUE_TOLERANCE

if TYPE_CHECKING:
    import torch

TITLE = "curvlinops 3.0.1"
REQUIREMENTS = ("torch=={torch}", "curvlinops-for-pytorch==3.0.1")


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    from benchmarks.comparison import completion

    if problem.task.quantity == "top_eigenvalue":
        return largest_eigenvalue(problem)
    model = problem.torch_model()
    return completion.from_jacobians(problem, model, jacobians(model, problem.task.outputs))


def jacobians(model: torch.nn.Module, o: int) -> Callable[[Sequence[int], torch.Tensor], list[torch.Tensor]]:
    import torch
    from curvlinops import TransposedJacobianLinearOperator

    from benchmarks.comparison import completion

    layers = completion.layers_of(model)

    def of_samples(group: Sequence[int], x: torch.Tensor) -> list[torch.Tensor]:
        own = [list(layers[index].parameters(recurse=False)) for index in group]
        parameters = [p for some in own for p in some]
        sizes = [sum(p.numel() for p in some) for some in own]
        found = [x.new_empty(len(x) * o, size) for size in sizes]
        identity = [torch.eye(o, device=x.device)[None]]
        label = torch.zeros(1, dtype=torch.long, device=x.device)  # asked for, and not used
        for row, sample in enumerate(x.split(1)):
            transposed = TransposedJacobianLinearOperator(
                model, parameters, [(sample, label)], check_deterministic=False, num_data=1
            )
            columns = iter(transposed @ identity)
            for j, some in zip(found, own, strict=True):
                torch.cat([next(columns).flatten(0, -2).T for _ in some], 1, out=j[row * o : (row + 1) * o])
        return found

    return of_samples


def largest_eigenvalue(problem: Problem) -> Callable[[], np.ndarray]:
    """The eigenvalue from products with the Jacobian of the network from the layer on."""
    from curvlinops import JacobianLinearOperator
    from scipy.sparse.linalg import eigsh

    model, (x, y) = problem.torch_model(), problem.tensors()
    head, rest = model[: 2 * problem.layer], model[2 * problem.layer :]
    parameters = [rest[0].weight]

    def job() -> np.ndarray:
        data = [(head(x).detach(), y)]
        jacobian = JacobianLinearOperator(rest, parameters, data, check_deterministic=False, num_data=len(x))
        kernel = (jacobian @ jacobian.adjoint()).to_scipy(np.float32)
        return eigsh(kernel, 1, tol=EIGENVALUE_TOLERANCE, return_eigenvectors=False)

    return job
