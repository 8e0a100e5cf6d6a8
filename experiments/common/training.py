"""Minibatch SGD that gives the same bits whether or not it was interrupted.

All there is to know about a run in progress is its number of iterations, the parameters and the momentum:
batches follow from (seed, epoch) alone, and no random state is shared with anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

EVALUATION_BATCH = 2048


class DivergedError(RuntimeError):
    """The training loss is no longer finite."""


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum and weight decay on the cross-entropy.

    The learning rate is per minibatch mean; weight decay is torch's (L2, added to the gradient); the last
    batch of an epoch may be smaller.
    """

    lr: float = 0.003
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    epochs: int = 100
    seed: int = 0


class Trainer:
    """Trains a model on x: [n, d] float32, y: [n] int64 (all on one device), and can stop and go on.

    Attributes:
        iteration: SGD steps done so far.
        total: SGD steps of the whole run.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> None:
        self.model, self.x, self.y, self.recipe = model, x, y, recipe
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.batches_per_epoch = math.ceil(len(x) / recipe.batch_size)
        self.total = self.batches_per_epoch * recipe.epochs
        self.iteration = 0
        self._order: tuple[int, Tensor] | None = None

    @property
    def epoch(self) -> float:
        """Epochs done so far, as a fraction."""
        return self.iteration / self.batches_per_epoch

    def batch(self, iteration: int) -> Tensor:
        """Indices of the samples in a given iteration's minibatch."""
        epoch, index = divmod(iteration, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.x))
            self._order = epoch, torch.from_numpy(order).to(self.x.device)
        start = index * self.recipe.batch_size
        return self._order[1][start : start + self.recipe.batch_size]

    def step(self) -> float:
        """One iteration of SGD; returns the minibatch's loss before it.

        Raises:
            DivergedError: if that loss is nan or inf; the parameters are then left as they were.
        """
        chosen = self.batch(self.iteration)
        loss = functional.cross_entropy(self.model(self.x[chosen]), self.y[chosen])
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(
                f"training diverged: the loss at iteration {self.iteration} is {value} (learning rate {self.recipe.lr})"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        return value

    def run(
        self,
        at: Collection[int],
        measure: Callable[[], None],
        after_step: Callable[[float], bool] | None = None,
    ) -> bool:
        """Train to the end of the recipe.

        Args:
            at: iterations before which ``measure`` is called; ``total`` is the end of training.
            measure: must leave the model as it found it.
            after_step: called with every minibatch's loss; True stops the run.

        Returns:
            Whether the run reached its end.

        Raises:
            DivergedError: see ``step``.
        """
        while True:
            if self.iteration in at:
                measure()
            if self.iteration == self.total:
                return True
            loss = self.step()
            if after_step is not None and after_step(loss):
                return False

    def state(self) -> dict[str, Any]:
        """Everything needed to go on, as CPU tensors (not copied if there already) and plain types."""
        return {
            "iteration": self.iteration,
            "model": {name: value.cpu() for name, value in self.model.state_dict().items()},
            "momentum": [
                None if (buffer := self.optimizer.state[p].get("momentum_buffer")) is None else buffer.cpu()
                for p in self.model.parameters()
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned, on any device."""
        self.iteration = state["iteration"]
        self.model.load_state_dict(state["model"])
        for parameter, buffer in zip(self.model.parameters(), state["momentum"], strict=True):
            if buffer is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device, copy=True)


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy (0 ... 1) on x: [n, d], y: [n]; n is at least 1."""
    loss, correct = 0.0, 0
    for xs, ys in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
        outputs = model(xs)
        loss += functional.cross_entropy(outputs, ys, reduction="sum").item()
        correct += int((outputs.argmax(dim=1) == ys).sum())
    return loss / len(x), correct / len(x)


def measurement_grid(total: int, count: int) -> list[int]:
    """Iterations to measure at: 0, 1, then evenly in the logarithm up to ``total``.

    Args:
        total: last iteration, at least 1.
        count: how many, at least 2; there are never more than total + 1.

    Returns:
        min(count, total + 1) distinct iterations, ascending; both ends are always among them.

    Raises:
        ValueError: if an argument is too small.
    """
    if total < 1:
        raise ValueError(f"total: expected at least 1, got {total}")
    if count < 2:
        raise ValueError(f"count: expected at least 2, got {count}")
    if count == 2:
        return [0, total]
    grid = [0, 1]
    for left in range(min(count, total + 1) - 2, 0, -1):
        # The geometric step that would end at the total, but always a whole iteration at least.
        grid.append(max(grid[-1] + 1, round(grid[-1] * (total / grid[-1]) ** (1 / left))))
    return grid
