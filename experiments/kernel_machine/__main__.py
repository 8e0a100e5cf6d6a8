"""Kernel regression with the tangent kernels of layers and of the whole network, before and after training.

Trains the paper's bias-free ReLU network. With its tangent kernels at initialisation and at the end it fits the labels
of a few training images by kernel ridge regression, and classifies test images: what each layer's features are worth on
their own, beside their alignment with the labels. Without arguments it runs on scikit-learn's digits. A run that was
interrupted goes on when the same command is given again, and ends with the same numbers.
"""

from __future__ import annotations

import argparse
import operator
import sys
from functools import partial, reduce

from torch import Tensor, nn

import ahkernels as ah
from experiments.common import command_line, data
from experiments.common.data import Samples
from experiments.common.jobs import Job, Run
from experiments.common.measuring import aligned_progress, tracker
from experiments.common.models import feedforward_on
from experiments.common.running import run
from experiments.common.store import Row, RunStore
from experiments.common.study import Study
from experiments.common.training import Recipe, Trainer
from experiments.kernel_machine import figure
from experiments.kernel_machine.figure import NETWORK
from experiments.kernel_machine.tables import print_table

TOLERANCE = 1e-4  # the regression's relative residual; few classes hang on less
MOST_ITERATIONS = 10_000


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    command_line.add(p, "--dataset", "--data-dir", "--train-size", "--depth", "--width", "--lr", "--momentum")
    command_line.add(p, "--weight-decay", "--batch-size", "--epochs")
    command_line.add(p, "--probe-size", help="training samples that the kernel machines fit, stratified")
    command_line.add(p, "--test-size")
    p.add_argument(
        "--ridge",
        type=command_line.positive,
        default=0.1,
        help="of the regression, times the mean eigenvalue of the kernel",
    )
    command_line.add(p, "--precision", "--seed")


def load(args: argparse.Namespace) -> data.Dataset:
    """The data set with as many training samples as were asked for; --test-size becomes a number."""
    dataset = command_line.load(args)
    args.test_size = command_line.test_size(args, dataset)
    return dataset


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run."""
    recipe = command_line.recipe(args)
    return [Job(f"seed-{args.seed}", partial(train, args, recipe, dataset), recipe)]


def train(args: argparse.Namespace, recipe: Recipe, dataset: data.Dataset, store: RunStore) -> int:
    """Train to the end; returns the signal that came, or 0."""
    model = feedforward_on(dataset, args.width, args.depth, args.seed)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)
    fitted = data.probe(dataset, args.probe_size, args.seed)
    few = data.test_subset(dataset, args.test_size, args.seed)
    tested = few.test_x, few.test_y
    tracked = tracker(model, fitted, args.precision)

    def measured() -> Row:
        row = aligned_progress(trainer, dataset, tracked)
        return row | machine_accuracies(model, fitted, tested, args.ridge, args.precision)

    return run(store, trainer, [0, trainer.total], measured, args.checkpoint_every)


def machine_accuracies(model: nn.Module, train: Samples, test: Samples, ridge: float, precision: str) -> Row:
    """The test accuracies of kernel regression, in columns machine_accuracy/<kernel>; changes nothing."""
    fitted, tested = (ah.tangent_kernels(model, x, precision=precision) for x, _ in (train, test))
    for kernels in (fitted, tested):
        kernels[NETWORK] = reduce(operator.add, list(kernels.values()))
    return {
        f"machine_accuracy/{name}": accuracy(fitted[name], tested[name], train[1], test[1], ridge) for name in fitted
    }


def accuracy(train: ah.TangentKernel, test: ah.TangentKernel, y: Tensor, test_y: Tensor, ridge: float) -> float:
    """The share of test samples that ridge regression with a kernel puts into their class, 0 ... 1."""
    mean = train.trace() / train.shape[0]
    if mean == 0:  # a dead layer says nothing: every class alike, of which the first is taken
        return float((test_y == 0).double().mean())
    fit = ah.kernel_regression(train, y, ridge=ridge * mean, tolerance=TOLERANCE, max_iterations=MOST_ITERATIONS)
    return float((fit.predict(test).argmax(1) == test_y).double().mean())


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figure and print the table."""
    (found,) = runs.values()
    path = args.output / "kernel_machine.png"
    figure.kernel_machine(found.rows, args.test_size, len(dataset.test_y), title(args, dataset), path)
    print_table(found.rows)
    print(f"figure: {path}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """The title says what a reader must know: data, network, recipe and regression."""
    return (
        f"{args.dataset}: network trained on {len(dataset.train_y):,} images, depth {args.depth}, width {args.width}, "
        f"learning rate {args.lr:g}, {args.epochs} epochs, seed {args.seed}\n"
        f"kernel regression on {args.probe_size:,} of them, {args.test_size:,} test images, "
        f"ridge {args.ridge:g} times the mean eigenvalue"
    )


STUDY = Study(
    "kernel_machine",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "depth", "width", "probe_size", "test_size", "ridge", "precision"),
    load=load,
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
