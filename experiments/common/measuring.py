"""Measurements of a network in training, which change nothing and draw no random number."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

import ahkernels as ah
from experiments.common.data import Dataset, Samples
from experiments.common.store import Row
from experiments.common.training import DivergedError, Trainer, evaluate

TRAIN_EVALUATION = 10_000  # the training loss is taken on no more samples than this


def training_loss(trainer: Trainer, dataset: Dataset) -> tuple[float, float]:
    """Loss (nats) and accuracy (0 ... 1) on the first TRAIN_EVALUATION training samples.

    Raises:
        DivergedError: If the loss is not finite.
    """
    train = slice(0, TRAIN_EVALUATION)
    loss, accuracy = evaluate(trainer.model, dataset.train_x[train], dataset.train_y[train])
    if not math.isfinite(loss):
        raise DivergedError(f"training diverged: the training loss at iteration {trainer.iteration} is {loss}")
    return loss, accuracy


def progress(trainer: Trainer, dataset: Dataset) -> Row:
    """Columns iteration, epoch, train_loss, test_loss (nats), train_accuracy and test_accuracy (0 ... 1).

    Raises:
        DivergedError: If the training loss is not finite.
    """
    train_loss, train_accuracy = training_loss(trainer, dataset)
    test_loss, test_accuracy = evaluate(trainer.model, dataset.test_x, dataset.test_y)
    return {
        "iteration": trainer.iteration,
        "epoch": trainer.epoch,
        "train_loss": train_loss,
        "test_loss": test_loss,
        "train_accuracy": train_accuracy,
        "test_accuracy": test_accuracy,
    }


def tracker(model: nn.Module, probe: Samples, precision: str, **options: Any) -> ah.AlignmentTracker:
    """An alignment tracker on a probe for every linear layer and convolution of a model."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return ah.AlignmentTracker(model, *probe, layers=layers, precision=precision, **options)


def aligned_progress(trainer: Trainer, dataset: Dataset, tracked: ah.AlignmentTracker) -> Row:
    """Columns of ``progress``, and what the tracker measures in columns such as cka/<layer>.

    Raises:
        DivergedError: If there is nan or inf in any of it.
    """
    row = progress(trainer, dataset)
    if not math.isfinite(row["test_loss"]):
        raise DivergedError(f"training diverged: the test loss at iteration {trainer.iteration} is {row['test_loss']}")
    try:
        return row | tracked.update(trainer.iteration).report.row()
    except ah.NonFiniteError as error:
        raise DivergedError(f"training diverged: {error}") from error
