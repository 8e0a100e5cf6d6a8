"""The way from a library's last result (factors, kernels or Jacobians of layers) to a task's value, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.common import jacobians, plain_layer
from benchmarks.comparison import lanczos
from benchmarks.comparison.grouping import BUDGET, groups
from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import EIGENVALUE_TOLERANCE

DENSE_ROWS = 1024  # up to which products with K itself are faster than with its factors

Job = Callable[[], np.ndarray]
Factors = Callable[[Sequence[int]], Iterable[tuple[torch.Tensor, torch.Tensor]]]  # a [n, N_in], g [n, o, N_out]
Kernels = Callable[[Sequence[int]], Iterable[torch.Tensor]]  # [n*o, n*o], row x*o + i
Jacobians = Callable[[Sequence[int], torch.Tensor], Sequence[torch.Tensor]]  # at these samples, [samples*o, numbers]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Modules with parameters of their own, in the order of named_modules."""
    return [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]


def from_kernels(
    problem: Problem, count: int, kernels: Kernels, network: Callable[[], torch.Tensor] | None = None
) -> Job:
    """The task's job, from the kernels of some of `count` layers; `network` gives their sum, if the library does."""
    quantity, target = problem.task.quantity, problem.target_tensor()

    def job() -> torch.Tensor:
        if quantity == "network_kernel" and network is not None:
            return network()
        found = iter(kernels([problem.layer] if quantity in ("layer_kernel", "top_eigenvalue") else range(count)))
        if quantity == "alignment":
            return torch.stack([jacobians.kernel_alignment(k, target) for k in found])
        if quantity == "layer_kernels":
            return torch.stack(list(found))
        k = next(found)
        if quantity == "top_eigenvalue":
            return lanczos.largest_eigenvalue(k.mv, k.new_ones(len(k)), EIGENVALUE_TOLERANCE)
        for another in found:
            k += another
        return k

    return lambda: job().cpu().numpy()


def from_factors(problem: Problem, factors: Factors) -> Job:
    """The task's job, from the factors of dense layers, as the plain torch contender does it."""
    task, target = problem.task, problem.target_tensor()
    layers = range(task.depth)
    if task.quantity == "alignment":
        block = plain_layer.block_sizes(task.n)[0 if task.device == "cpu" else -1]
        return lambda: np.array([plain_layer.blocked(a, g, target, block) for a, g in factors(layers)])
    if task.quantity == "top_eigenvalue" and task.n * task.outputs > DENSE_ROWS:

        def eigenvalue() -> np.ndarray:
            ((a, g),) = factors([problem.layer])
            start = g.new_ones(task.n * task.outputs)
            found = lanczos.largest_eigenvalue(lambda v: plain_layer.product(a, g, v), start, EIGENVALUE_TOLERANCE)
            return found.numpy()

        return eigenvalue
    return from_kernels(problem, task.depth, lambda layers: (plain_layer.dense(a, g) for a, g in factors(layers)))


def from_jacobians(problem: Problem, model: nn.Module, of_samples: Jacobians) -> Job:
    """The task's job, from Jacobians of some layers at some samples: as many of each as fit in BUDGET."""
    x, o = problem.tensors()[0], problem.task.outputs
    n = len(x)
    numbers = [sum(p.numel() for p in layer.parameters(recurse=False)) for layer in layers_of(model)]

    def kernels(layers: Sequence[int]) -> Iterator[torch.Tensor]:
        for group in groups(layers, [4 * n * o * numbers[layer] for layer in layers]):
            block = min(n, max(1, BUDGET // (4 * o * sum(numbers[layer] for layer in group))))
            if block == n:
                yield from (j @ j.T for j in of_samples(group, x))
            else:
                yield from by_blocks(lambda part, group=group: of_samples(group, part), x.split(block), o)

    return from_kernels(problem, len(numbers), kernels)


def by_blocks(
    of_samples: Callable[[torch.Tensor], Sequence[torch.Tensor]], parts: Sequence[torch.Tensor], o: int
) -> list[torch.Tensor]:
    """J J^T of each layer where J is only held for two parts of the samples: the earlier ones are formed again."""
    ends = np.cumsum([0, *(o * len(part) for part in parts)]).tolist()
    kernels: list[torch.Tensor] = []
    for i, part in enumerate(parts):
        left = of_samples(part)
        kernels = kernels or [j.new_empty(ends[-1], ends[-1]) for j in left]
        rows = slice(ends[i], ends[i + 1])
        for j in range(i + 1):
            columns = slice(ends[j], ends[j + 1])
            right = left if j == i else of_samples(parts[j])
            for k, one, other in zip(kernels, left, right, strict=True):
                k[rows, columns] = one @ other.T
                k[columns, rows] = k[rows, columns].T
    return kernels


def repeated(x: torch.Tensor, o: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sample o times in a row, [n*o, ...], and the output that each copy stands for, [n*o, 1].

    One backward pass from these outputs has all o cotangents of all samples in one batch, for libraries that take a
    gradient for each sample of a batch.
    """
    return x.repeat_interleave(o, 0), torch.arange(o, device=x.device).repeat(len(x))[:, None]


class FrozenNorm(nn.Module):
    """A BatchNorm2d in eval mode: the same parameters and values, for libraries that refuse the class itself."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.mean = norm.running_mean[:, None, None]  # neither is a buffer, which would be refused, too
        self.scale = (norm.running_var + norm.eps).rsqrt()[:, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) * self.scale * self.weight[:, None, None] + self.bias[:, None, None]


def with_frozen_norms(model: nn.Module) -> nn.Module:
    """The model itself, with every BatchNorm2d replaced by its FrozenNorm."""
    for name, child in model.named_children():
        setattr(model, name, FrozenNorm(child) if isinstance(child, nn.BatchNorm2d) else with_frozen_norms(child))
    return model
