"""A network of a library with a batch of inputs and labels."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

SAMPLES = 16
OUTPUTS = 5
WORDS = 50  # in the vocabulary of a language model


@dataclass(frozen=True)
class Problem:
    """What a user has at hand.

    Attributes:
        model: The network, as its library makes it.
        x: What the network is called with: a tensor, a tuple of arguments, or a dict of keywords, with one sample in
            each row of every tensor.
        output: Takes the outputs [n, o] out of what the network returns, where that is something else.
    """

    model: nn.Module
    x: Any
    output: Callable[[Any], Tensor] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of a measurement."""
        return {} if self.output is None else {"output": self.output}

    def copied(self, dtype: torch.dtype | None = None) -> Problem:
        """The same with a copy of the network, in other numbers where a dtype is given."""
        model = copy.deepcopy(self.model).eval()
        if dtype is None:
            return Problem(model, self.x, self.output)
        x = tree_map_only(Tensor, lambda value: value.to(dtype) if value.is_floating_point() else value, plain(self.x))
        return Problem(model.to(dtype), x, self.output)

    def sample(self, i: int) -> Any:
        """The inputs of one sample, a row in each tensor."""
        return tree_map_only(Tensor, lambda value: value[i : i + 1], plain(self.x))

    def arguments(self, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and keywords with which the network is called on inputs."""
        if isinstance(x, Mapping):
            return (), dict(x)
        return (x if isinstance(x, tuple) else (x,)), {}

    def outputs(self, found: Any) -> Tensor:
        """The outputs [n, o] from what the network has returned."""
        if self.output is not None:
            return self.output(found)
        return found if isinstance(found, Tensor) else found.logits


@dataclass(frozen=True)
class Network:
    """A network of the table.

    Attributes:
        library: The distribution that has it.
        name: What people call it.
        make: Builds it at a tiny size with random weights.
        needs: Other distributions that it is made with.
    """

    library: str
    name: str
    make: Callable[[], Problem]
    needs: tuple[str, ...] = ()

    @property
    def version(self) -> str | None:
        """The version of the library; None where it, or what it needs, is not installed."""
        try:
            return [importlib.metadata.version(one) for one in (*self.needs, self.library)][-1]
        except importlib.metadata.PackageNotFoundError:
            return None

    def build(self) -> Problem:
        """The same weights and inputs in every call, and the network in evaluation mode."""
        torch.manual_seed(0)
        problem = self.make()
        move_constants(problem.model)
        take_statistics(problem)
        problem.model.eval()
        return problem


@torch.no_grad()
def move_constants(model: nn.Module) -> None:
    """Adds noise to parameters of one value, such as gains of 1 and the zeros that switch branches off."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point() and parameter.min() == parameter.max():
            parameter += 0.1 * torch.randn_like(parameter)


@torch.no_grad()
def take_statistics(problem: Problem) -> None:
    """Batch normalisations take their statistics from the inputs, without which outputs of deep networks vanish."""
    normalisations = [module for module in problem.model.modules() if isinstance(module, _BatchNorm)]
    if not normalisations:
        return
    for module in normalisations:
        module.momentum = None  # a plain average
    positional, keywords = problem.arguments(problem.x)
    problem.model.train()(*positional, **keywords)


def plain(x: Any) -> Any:
    """Inputs with a dict in the place of another mapping."""
    return dict(x) if isinstance(x, Mapping) else x


def labels() -> Tensor:
    """Classes [n], each as often."""
    return torch.arange(SAMPLES) % OUTPUTS


def images(size: int = 32, channels: int = 3) -> Tensor:
    """Random images [n, channels, size, size]."""
    return torch.randn(SAMPLES, channels, size, size)


def words(length: int = 8) -> Tensor:
    """Random words [n, length], none of which is the one that fills up."""
    return torch.randint(1, WORDS, (SAMPLES, length))


def mean_over_positions(x: Tensor) -> Tensor:
    """The first outputs [n, o] of [n, positions, numbers], averaged over the positions."""
    return x.mean(1)[:, :OUTPUTS]


def mean_over_pixels(x: Tensor) -> Tensor:
    """The outputs [n, o] of maps [n, o, height, width]."""
    return x.flatten(2).mean(2)
