"""What is measured of a network in training; nothing here changes it or draws a random number."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ahkernels import AlignmentReport, layerwise_alignment
from ahkernels.capture.guard import evaluating
from experiments.common.data import Dataset
from experiments.common.store import Row
from experiments.common.training import DivergedError, Trainer, evaluate

TRAIN_EVALUATION = 10_000  # the training loss is taken on no more samples than this


def training_loss(trainer: Trainer, dataset: Dataset) -> tuple[float, float]:
    """Loss (nats) and accuracy (0 ... 1) on the first TRAIN_EVALUATION training samples.

    Raises:
        DivergedError: if the loss is not finite.
    """
    train = slice(0, TRAIN_EVALUATION)
    loss, accuracy = evaluate(trainer.model, dataset.train_x[train], dataset.train_y[train])
    if not math.isfinite(loss):
        raise DivergedError(f"training diverged: the training loss at iteration {trainer.iteration} is {loss}")
    return loss, accuracy


def progress(trainer: Trainer, dataset: Dataset) -> Row:
    """Columns iteration, epoch, train_loss, test_loss (nats), train_accuracy and test_accuracy (0 ... 1).

    Raises:
        DivergedError: if the training loss is not finite.
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


def alignments(report: AlignmentReport) -> Row:
    """Columns cka/<layer>, then those of all further statistics that were asked for, such as stable_rank/<layer>."""
    row: Row = {}
    for name, values in report.columns().items():
        if name not in ("centered_norm", "trace"):
            row |= {f"{name}/{layer}": value for layer, value in zip(report.layers, values.tolist(), strict=True)}
    return row


def aligned_progress(trainer: Trainer, dataset: Dataset, probe_x: Tensor, probe_y: Tensor, precision: str) -> Row:
    """Columns of ``progress``, and the alignment of every linear layer and convolution, in eval mode.

    Raises:
        DivergedError: if there is nan or inf in any of it.
    """
    row = progress(trainer, dataset)
    if not math.isfinite(row["test_loss"]):
        raise DivergedError(f"training diverged: the test loss at iteration {trainer.iteration} is {row['test_loss']}")
    layers = [name for name, module in trainer.model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    try:
        with evaluating(trainer.model):
            report = layerwise_alignment(trainer.model, probe_x, probe_y, layers=layers, precision=precision)
    except ValueError as error:  # the arguments fit: a layer's activations or gradients are not finite
        raise DivergedError(f"training diverged: {error}") from error
    return row | alignments(report)
