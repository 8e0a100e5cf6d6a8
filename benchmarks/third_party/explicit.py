"""The alignment of each layer from its Jacobian, as people write it with torch.func."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from benchmarks.common import jacobians
from benchmarks.third_party import reference
from benchmarks.third_party.problem import OUTPUTS, SAMPLES, Problem, labels, plain

Way = Callable[[Problem, Sequence[str]], Sequence[Tensor]]  # parts of the Jacobian, each [n*o, numbers]


@dataclass(frozen=True)
class Timed:
    """The alignments of the layers that were reached in time.

    Attributes:
        ways: How many of these layers were measured in each way.
        refusal: Why not all by `vmap` over the samples, where that is so.
        seconds: For all layers, from those that were reached.
        alignments: By the names of those layers.
    """

    ways: dict[str, int]
    refusal: str | None
    seconds: float
    alignments: dict[str, float]


def of_one_sample(problem: Problem, names: Sequence[str]) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """The outputs [o] as a function of a layer's parameters and one sample, and those parameters."""
    parameters = {name: parameter.detach() for name, parameter in problem.model.named_parameters()}
    own = {name: parameters.pop(name) for name in names}

    def outputs(values: dict[str, Tensor], sample: Any) -> Tensor:
        positional, keywords = problem.arguments(sample)
        found = functional_call(problem.model, {**parameters, **values}, positional, keywords)
        return problem.outputs(found)[0]

    return outputs, own


def batched(problem: Problem, names: Sequence[str]) -> Sequence[Tensor]:
    """By vmap over the samples."""
    outputs, own = of_one_sample(problem, names)
    rows = tree_map_only(Tensor, lambda value: value[:, None], plain(problem.x))
    found = vmap(jacrev(outputs), (None, 0))(own, rows)
    return [value.flatten(2).flatten(0, 1) for value in found.values()]


def sample_by_sample(problem: Problem, names: Sequence[str]) -> Sequence[Tensor]:
    """By a loop over the samples."""
    outputs, own = of_one_sample(problem, names)
    found = [jacrev(outputs)(own, problem.sample(i)) for i in range(SAMPLES)]
    return [torch.cat([one[name].flatten(1) for one in found]) for name in names]


def row_by_row(problem: Problem, names: Sequence[str]) -> Sequence[Tensor]:
    """By a loop over samples and outputs."""
    return reference.jacobians(problem, [names])


WAYS: dict[str, Way] = {
    "vmap": batched,
    "jacrev of each sample": sample_by_sample,
    "autograd of each output": row_by_row,
}
LAST = list(WAYS)[-1]


def is_sound(jacobian: Sequence[Tensor]) -> bool:
    """Whether it is finite, and not zero as where `functional_call` does not reach the parameters of a layer."""
    return all(bool(part.isfinite().all()) for part in jacobian) and any(bool(part.any()) for part in jacobian)


def alignments(build: Callable[[], Problem], layers: Mapping[str, Sequence[str]], limit: float) -> Timed:
    """Measures layers in random order until the seconds are over, each in the first way that the network allows.

    Args:
        build: Makes the network and its inputs, anew where torch.func has left the network in disorder.
        layers: Names of the parameters of each layer.
        limit: The seconds; at least one layer is measured.
    """
    target = functional.one_hot(labels(), OUTPUTS).float()
    problem = build()
    refusal: str | None = None
    ways, found, seconds, until = Counter[str](), dict[str, float](), 0.0, time.perf_counter() + limit
    for layer in random.Random(0).sample(list(layers), len(layers)):
        for way, parts in WAYS.items():
            start = time.perf_counter()
            try:
                jacobian = parts(problem, layers[layer])
                if way != LAST and not is_sound(jacobian):
                    raise ArithmeticError("the Jacobian is zero or not finite")
                found[layer] = float(jacobians.alignment(jacobian, target))
            except Exception as reason:  # whatever a library's forward does under torch.func
                problem, refusal = build(), refusal or sentence(reason)
                continue
            seconds += time.perf_counter() - start
            ways[way] += 1
            break
        if time.perf_counter() > until:
            break
    return Timed(dict(ways), refusal, seconds * len(layers) / max(1, len(found)), found)


def sentence(reason: Exception) -> str:
    """The first line of an error."""
    return f"{type(reason).__name__}: {' '.join(str(reason).split())}"[:300]
