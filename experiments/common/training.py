"""Minibatch training that gives the same bits whether or not it was interrupted.

All there is to know about a run in progress is its number of iterations, the states of the model and of the
optimizer, and what the stopping rule remembers: batches follow from (seed, epoch) alone, crops and flips from
(seed, iteration), and no random state is shared with anything else.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import ahkernels as ah
from experiments.common.augmentation import CropsAndFlips

EVALUATION_BATCH = 2048
OPTIMIZERS = ("sgd", "adam")
ADAM_SECOND_BETA = 0.999  # torch's default
AVERAGE_KEEPS = 0.9  # of the running average of minibatch losses, per iteration
EPOCH_ENDS = 2  # in a row with a small loss end a run


class DivergedError(RuntimeError):
    """The training loss is no longer finite."""


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum, or Adam, on the cross-entropy with weight decay.

    The learning rate is per minibatch mean; momentum is Adam's first beta, too; weight decay is torch's (L2, added
    to the gradient); the last batch of an epoch may be smaller. With a ``stop_loss`` a run ends where the running
    average of the minibatch losses is below it at EPOCH_ENDS epoch ends in a row, and otherwise after its epochs. To
    augment is to train on random crops and flips of colour images.
    """

    lr: float = 0.003
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    epochs: int = 100
    seed: int = 0
    optimizer: str = "sgd"  # or "adam"
    stop_loss: float | None = None
    augment: bool = False

    def epoch_steps(self, samples: int) -> int:
        """The number of optimizer steps in an epoch."""
        return math.ceil(samples / self.batch_size)

    def steps(self, samples: int) -> int:
        """The number of optimizer steps of a whole run."""
        return self.epochs * self.epoch_steps(samples)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters.

        Raises:
            ValueError: If its name is unknown.
        """
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.optimizer == "adam":
            betas = self.momentum, ADAM_SECOND_BETA
            return torch.optim.Adam(parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay)
        raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")


class Trainer:
    """Trains a model on x: [n, d] float32, y: [n] int64 (all on one device), and can stop and go on.

    Attributes:
        iteration: The number of optimizer steps done so far.
        total: The number of optimizer steps of the whole run, unless its stopping rule ends it earlier.
        averaged_loss: The running average of the minibatch losses, nan before the first one.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> None:
        self.model, self.x, self.y, self.recipe = model, x, y, recipe
        self.optimizer = recipe.build(model.parameters())
        self.batches_per_epoch = recipe.epoch_steps(len(x))
        self.total = recipe.steps(len(x))
        self.iteration = 0
        self.averaged_loss = math.nan
        self._small_ends = 0  # the last epoch ends in a row with an averaged loss below the recipe's
        self._augmented = CropsAndFlips(x, recipe.seed) if recipe.augment else None
        self._order: tuple[int, Tensor] | None = None

    @property
    def epoch(self) -> float:
        """Epochs done so far, as a fraction."""
        return self.iteration / self.batches_per_epoch

    @property
    def loss_reached(self) -> bool:
        """Whether the recipe's stopping rule ends the run here."""
        return self._small_ends >= EPOCH_ENDS

    def batch(self, iteration: int) -> Tensor:
        """Indices of the samples in a given iteration's minibatch."""
        epoch, index = divmod(iteration, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.x))
            self._order = epoch, torch.from_numpy(order).to(self.x.device)
        start = index * self.recipe.batch_size
        return self._order[1][start : start + self.recipe.batch_size]

    def loss(self, chosen: Tensor) -> Tensor:
        """The loss on the samples of these indices, which training minimises."""
        x = self.x[chosen]
        if self._augmented is not None:
            x = self._augmented(x, self.iteration)
        return functional.cross_entropy(self.model(x), self.y[chosen])

    def step(self) -> float:
        """Do one iteration; returns the minibatch's loss before it.

        Raises:
            DivergedError: If that loss is nan or inf; the parameters are then left as they were.
        """
        chosen = self.batch(self.iteration)
        loss = self.loss(chosen)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(
                f"training diverged: the loss at iteration {self.iteration} is {value} (learning rate {self.recipe.lr})"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        self._follow(value)
        return value

    def _follow(self, loss: float) -> None:
        """Take a minibatch's loss into the running average, and at the end of an epoch look at it."""
        first = math.isnan(self.averaged_loss)
        self.averaged_loss = loss if first else AVERAGE_KEEPS * self.averaged_loss + (1 - AVERAGE_KEEPS) * loss
        if self.recipe.stop_loss is not None and self.iteration % self.batches_per_epoch == 0:
            self._small_ends = self._small_ends + 1 if self.averaged_loss < self.recipe.stop_loss else 0

    def run(
        self,
        at: Collection[int],
        measure: Callable[[], None],
        after_step: Callable[[float], bool] | None = None,
    ) -> bool:
        """Train to the end of the recipe.

        Args:
            at: The iterations before which ``measure`` is called; ``total`` is the end of training.
            measure: Must leave the model as it found it.
            after_step: Called with every minibatch's loss; True stops the run.

        Returns:
            Whether the run reached its end.

        Raises:
            DivergedError: See ``step``.
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
        optimizer = self.optimizer.state_dict()
        return {
            "iteration": self.iteration,
            "averaged_loss": self.averaged_loss,
            "small_ends": self._small_ends,
            "model": {name: value.cpu() for name, value in self.model.state_dict().items()},
            "optimizer": {
                "param_groups": optimizer["param_groups"],
                "state": {
                    index: {
                        name: value.cpu() if isinstance(value, Tensor) else value for name, value in entries.items()
                    }
                    for index, entries in optimizer["state"].items()
                },
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned, on any device."""
        self.iteration = state["iteration"]
        self.averaged_loss, self._small_ends = state["averaged_loss"], state["small_ends"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch keeps the tensors that it is given


@contextmanager
def flushed_denormals() -> Iterator[bool]:
    """CPU arithmetic with denormal numbers taken as zero; yields whether this CPU can.

    Weight decay makes the weights of dead units denormal under Adam, and a step with them takes four times as long.
    It is to be entered before torch starts its threads, which take this over from the one that starts them.
    """
    try:
        yield torch.set_flush_denormal(True)
    finally:
        torch.set_flush_denormal(False)


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy (0 ... 1) on x: [n, d], y: [n]; n is at least 1."""
    loss, correct = 0.0, 0
    with ah.evaluating(model):
        for xs, ys in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
            outputs = model(xs)
            loss += functional.cross_entropy(outputs, ys, reduction="sum").item()
            correct += int((outputs.argmax(dim=1) == ys).sum())
    return loss / len(x), correct / len(x)
