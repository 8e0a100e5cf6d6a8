"""Kernels from Jacobians that torch.autograd.grad gives, one sample and one output at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from benchmarks.third_party.layers import parameters_by_layer, parameters_of
from benchmarks.third_party.problem import SAMPLES, Problem


def jacobians(problem: Problem, layers: Iterable[Sequence[str]]) -> list[Tensor]:
    """The Jacobian [n*o, numbers] by the named parameters of each layer, in the numbers of the network."""
    parameters = dict(problem.model.named_parameters())
    groups = [[parameters[name].requires_grad_() for name in names] for names in layers]
    flat = [parameter for group in groups for parameter in group]
    rows: list[list[Tensor]] = [[] for _ in groups]
    for i in range(SAMPLES):
        positional, keywords = problem.arguments(problem.sample(i))
        outputs = problem.outputs(problem.model(*positional, **keywords))[0]
        for output in outputs:
            found = iter(
                torch.autograd.grad(output, flat, retain_graph=True, allow_unused=True, materialize_grads=True)
            )
            for group, of_layer in zip(groups, rows, strict=True):
                of_layer.append(torch.cat([next(found).reshape(-1) for _ in group]))
    return [torch.stack(of_layer) for of_layer in rows]


def kernels(problem: Problem, layers: Sequence[str], *, in_float64: bool) -> list[Tensor]:
    """K [n*o, n*o] of each of these layers, by a copy of the network in float64, or as it is."""
    copied = problem.copied(torch.float64 if in_float64 else None)
    owned = parameters_by_layer(copied.model)
    found = jacobians(copied, [parameters_of(owned, name) for name in layers])
    return [j.double() @ j.double().mT for j in found]
