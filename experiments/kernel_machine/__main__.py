"""Kernel regression with the tangent kernels of layers and of the whole network, before and after training.

Trains the paper's bias-free ReLU network. With its tangent kernels at initialisation and at the end it fits the labels
of a few training images by kernel ridge regression, and classifies test images: what each layer's features are worth on
their own, beside their alignment with the labels. Without arguments it runs on scikit-learn's digits. A run that was
interrupted goes on when the same command is given again, and ends with the same numbers.
"""

from __future__ import annotations

import argparse
import functools
import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import ahkernels as ah
from experiments.common import command_line, data, figures
from experiments.common.measuring import alignments, progress
from experiments.common.models import feedforward
from experiments.common.running import opened, run, stopped
from experiments.common.store import Row, RunStore, describe_environment
from experiments.common.training import DivergedError, Trainer
from experiments.kernel_machine import figure
from experiments.kernel_machine.figure import NETWORK

TOLERANCE = 1e-4  # of the regression's residual: few classes hang on less
MOST_ITERATIONS = 10_000
Samples = tuple[Tensor, Tensor]  # x [n, d], y [n]


# ---- command line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.command_line(__doc__)
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
    p.add_argument("--output", type=Path, help="folder for the results (default: runs/kernel_machine-DATASET)")
    command_line.add(p, "--overwrite", "--checkpoint-every", "--threads", "--device")
    return p


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; exits with a message that names the option if a value is wrong."""
    p = parser()
    args = p.parse_args(arguments)
    command_line.require_data_dir(p, args)
    args.output = args.output or Path("runs") / f"kernel_machine-{args.dataset}"
    return args


# ---- one run


def config(args: argparse.Namespace, dataset: data.Dataset) -> dict[str, Any]:
    """All that determines a run's numbers, up to the machine it runs on."""
    names = ("dataset", "depth", "width", "probe_size", "test_size", "ridge", "precision")
    return command_line.config(args, dataset, names)


def accuracy(train: ah.TangentKernel, test: ah.TangentKernel, y: Tensor, test_y: Tensor, ridge: float) -> float:
    """Share of the test samples that ridge regression with a kernel puts into their class, 0 ... 1."""
    mean = train.trace() / train.shape[0]
    if mean == 0:  # a dead layer says nothing: every class alike, of which the first is taken
        return float((test_y == 0).double().mean())
    fit = ah.kernel_regression(train, y, ridge=ridge * mean, tolerance=TOLERANCE, max_iterations=MOST_ITERATIONS)
    return float((fit.predict(test).argmax(1) == test_y).double().mean())


def measure(trainer: Trainer, dataset: data.Dataset, train: Samples, test: Samples, args: argparse.Namespace) -> Row:
    """Losses, accuracies, alignments, and the kernel machines' accuracies; changes nothing."""
    row = progress(trainer, dataset)
    row |= alignments(ah.layerwise_alignment(trainer.model, *train, precision=args.precision))
    fitted, tested = (ah.tangent_kernels(trainer.model, x, precision=args.precision) for x, _ in (train, test))
    for kernels in (fitted, tested):
        kernels[NETWORK] = functools.reduce(operator.add, list(kernels.values()))
    return row | {
        f"machine_accuracy/{name}": accuracy(fitted[name], tested[name], train[1], test[1], args.ridge)
        for name in fitted
    }


def train(store: RunStore, name: str, args: argparse.Namespace, dataset: data.Dataset) -> int:
    """Train to the end; returns the signal that came, or 0."""
    model = feedforward(dataset.train_x.shape[1], args.width, args.depth, dataset.classes, args.seed).to(args.device)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, command_line.recipe(args))
    chosen = data.stratified_subset(dataset.train_y, args.probe_size, args.seed).to(args.device)
    tests = data.stratified_subset(dataset.test_y, args.test_size, args.seed).to(args.device)
    fitted, tested = (dataset.train_x[chosen], dataset.train_y[chosen]), (dataset.test_x[tests], dataset.test_y[tests])
    try:
        return run(
            store,
            trainer,
            name,
            [0, trainer.total],
            lambda: measure(trainer, dataset, fitted, tested, args),
            args.checkpoint_every,
        )
    except DivergedError as error:
        raise DivergedError(f"{name}: {error}; choose a smaller --lr and another --output") from error


# ---- the study


def print_table(rows: Sequence[Row]) -> None:
    """Accuracies of the machines and alignments, by layer."""
    names = [name.removeprefix("machine_accuracy/") for name in rows[0] if name.startswith("machine_accuracy/")]
    width = max(map(len, names))
    print("test accuracy of kernel regression, and alignment of the kernel with the labels:")
    print(f"  {'kernel':<{width}}  {'at start':>9}  {'at end':>9}  {'CKA, start':>10}  {'CKA, end':>10}")
    for name in names:
        accuracies = [f"{row[f'machine_accuracy/{name}']:>9.1%}" for row in (rows[0], rows[-1])]
        aligned = [f"{row[f'cka/{name}']:>10.4f}" if name != NETWORK else "" for row in (rows[0], rows[-1])]
        print("  ".join([f"  {name:<{width}}", *accuracies, *aligned]).rstrip())
    last = rows[-1]
    print(
        f"the trained network itself: test accuracy {last['test_accuracy']:.1%} (all test images), "
        f"train accuracy {last['train_accuracy']:.1%}"
    )


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """What a reader must know about the figure: data, network, recipe and regression."""
    return (
        f"{args.dataset}: network trained on {len(dataset.train_y):,} images, depth {args.depth}, width {args.width}, "
        f"learning rate {args.lr:g}, {args.epochs} epochs, seed {args.seed}\n"
        f"kernel regression on {args.probe_size:,} of them, {args.test_size:,} test images, "
        f"ridge {args.ridge:g} times the mean eigenvalue"
    )


def study(args: argparse.Namespace) -> int:
    """The run, the figure and the table; returns the exit status."""
    dataset = command_line.load(args)
    args.test_size = command_line.test_size(args, dataset)
    name = f"seed-{args.seed}"
    environment = describe_environment(args.device, ah.build_info())
    with opened(args.output, {name: config(args, dataset)}, environment, args.overwrite) as stores:
        store = stores[name]
        if not store.finished and (number := train(store, name, args, dataset.to(args.device))):
            return stopped(store, name, number)
        rows = store.rows
    paths = figures.files(args.output, "kernel_machine")
    figure.kernel_machine(rows, title(args, dataset), paths)
    print_table(rows)
    print(f"figure: {paths[-1]}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; a mistake of the user's ends in one message and status 2, not in a traceback."""
    return command_line.finish(__file__, study, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
