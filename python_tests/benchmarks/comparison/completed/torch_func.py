"""Factors, or Jacobians of all samples or of two at a time, by torch.func."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.comparison.problem import Problem

TITLE = "torch.func, completed"
REQUIREMENTS = ()
IN_FLOAT64 = " in float64"  # the same job as without it, where only the precision differs
VARIANTS = (
    "factors",
    "Jacobians",
    "Jacobians of two samples",
    "copies of samples",
    "Jacobians in float64",
    "frozen norms in float64",
)


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    import torch

    from benchmarks.common import jacobians, plain_network
    from benchmarks.comparison import completion

    if variant.endswith(IN_FLOAT64):
        problem, variant = problem.in_float64(), variant.removesuffix(IN_FLOAT64)
    model, o = problem.torch_model(), problem.task.outputs
    if variant == "factors":

        def factors(layers: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
            found = plain_network.by_hand(model, problem.tensors()[0])
            return [found[layer] for layer in layers]

        return completion.from_factors(problem, factors)
    names = list(jacobians.layers_of(model).values())
    if variant == "frozen norms":
        model = completion.with_frozen_norms(model)
    elif variant == "Jacobians of two samples":
        completion.BUDGET = 2 * 4 * o * max(np.prod(shape) for shape in problem.task.shapes)

    def of_samples(group: Sequence[int], x: torch.Tensor) -> list[torch.Tensor]:
        parts = [jacobians.jacobian(model, names[layer], x, None).values() for layer in group]
        return [torch.cat(list(one), 1).detach() for one in parts]

    def of_copies(group: Sequence[int], x: torch.Tensor) -> list[torch.Tensor]:
        copies, outputs = completion.repeated(x, o)
        rows = torch.arange(len(copies))
        return [j.view(len(copies), o, -1)[rows, outputs[:, 0]] for j in of_samples(group, copies)]

    return completion.from_jacobians(problem, model, of_copies if variant == "copies of samples" else of_samples)
