"""Measurements of a network in training, which change nothing and draw no random number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

import ahkernels as ah
from ahkernels.centering import Centering
from experiments.common.data import Dataset, Samples
from experiments.common.store import Row
from experiments.common.training import DivergedError, Trainer, evaluate

TRAIN_EVALUATION = 10_000  # the training loss is taken on no more samples than this
CENTERINGS = ("per_output", "global")  # as in the paper's figures, and as in its equation 6
CENTERING_NAMES = {"per_output": "each output centered", "global": "centered globally (equation 6)"}


def authors_grid(total: int) -> list[int]:
    """The iterations at which the paper's authors measure hierarchies, 0 and 5 floor(1.15^k), and the last one."""
    grid, power = {0, total}, 1.0
    while 5 * math.floor(power) <= total:
        grid.add(5 * math.floor(power))
        power *= 1.15
    return sorted(grid)


def binomial_error(accuracy: float, samples: int) -> float:
    """The standard error of an accuracy that was counted on so many samples."""
    return math.sqrt(accuracy * (1 - accuracy) / samples)


def counted(accuracy: float, samples: int) -> str:
    """The text for an accuracy with its binomial error."""
    return f"{accuracy:.1%} ± {binomial_error(accuracy, samples):.1%} (binomial)"


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

    A recipe with a stopping rule adds averaged_loss, and loss_reached: 1 where the rule ends the run, otherwise 0.

    Raises:
        DivergedError: If the training loss is not finite.
    """
    train_loss, train_accuracy = training_loss(trainer, dataset)
    test_loss, test_accuracy = evaluate(trainer.model, dataset.test_x, dataset.test_y)
    row = {
        "iteration": trainer.iteration,
        "epoch": trainer.epoch,
        "train_loss": train_loss,
        "test_loss": test_loss,
        "train_accuracy": train_accuracy,
        "test_accuracy": test_accuracy,
    }
    if trainer.recipe.stop_loss is not None:
        row |= {"averaged_loss": trainer.averaged_loss, "loss_reached": float(trainer.loss_reached)}
    return row


def linear_layers(model: nn.Module) -> list[str]:
    """The names of the linear layers and convolutions of a model, which the studies measure."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def tracker(model: nn.Module, probe: Samples, precision: str, **options: Any) -> ah.AlignmentTracker:
    """An alignment tracker on a probe for the ``linear_layers`` of a model."""
    return ah.AlignmentTracker(model, *probe, layers=linear_layers(model), precision=precision, **options)


def aligned_progress(trainer: Trainer, dataset: Dataset, tracked: ah.AlignmentTracker) -> Row:
    """Columns of ``progress``, and what the tracker measures in columns such as cka/<layer>.

    Raises:
        DivergedError: If there is nan or inf in any of it.
    """
    row = _finite_progress(trainer, dataset)
    return row | next(iter(reports(trainer, tracked).values())).row()


def probe_trackers(model: nn.Module, probes: Mapping[str, Samples], precision: str) -> dict[str, ah.AlignmentTracker]:
    """Alignment trackers with both centerings on each of some probes."""
    return {part: tracker(model, probe, precision, centering=CENTERINGS) for part, probe in probes.items()}


def reports(trainer: Trainer, tracked: ah.AlignmentTracker) -> dict[Centering, ah.AlignmentReport]:
    """Measure the network as it is, with each centering.

    Raises:
        DivergedError: If there is nan or inf in it.
    """
    try:
        return tracked.update(trainer.iteration).reports
    except ah.NonFiniteError as error:
        raise DivergedError(f"training diverged: {error}") from error


@contextmanager
def constant_backward_grams() -> Iterator[None]:
    """Backward Grams may be constant without a warning: per output, nothing is left of the last layer's."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"kernel of layer '[^']+ \(backward Gram\)' is constant, so", ah.DegenerateKernelWarning
        )
        yield


def alignments(part: str, of: Mapping[Centering, ah.AlignmentReport]) -> Row:
    """The alignments on a probe in columns cka/<probe>/<centering>/<layer>."""
    return {
        f"cka/{part}/{centering}/{layer}": value for centering, report in of.items() for layer, value in report.items()
    }


def probed_progress(trainer: Trainer, dataset: Dataset, trackers: Mapping[str, ah.AlignmentTracker]) -> Row:
    """Columns of ``progress``, and ``alignments`` on each probe.

    Raises:
        DivergedError: If there is nan or inf in any of it.
    """
    row = _finite_progress(trainer, dataset)
    for part, tracked in trackers.items():
        row |= alignments(part, reports(trainer, tracked))
    return row


def _finite_progress(trainer: Trainer, dataset: Dataset) -> Row:
    row = progress(trainer, dataset)
    if not math.isfinite(row["test_loss"]):
        raise DivergedError(f"training diverged: the test loss at iteration {trainer.iteration} is {row['test_loss']}")
    return row
