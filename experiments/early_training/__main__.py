"""Early training: how tangent features move with the output Hessian (figures 5 and 6; appendices B.4 and B.5).

Tests Approximation 1 of the paper along the training of a network. Its first half: the gradient w of the loss by the
outputs points against the centered labels y~. Its second half: a step changes the tangent features along y~, Psi y~, in
the direction of -H_w Psi y~, where H_w is the output Hessian. At a few moments also the eigenvectors of H_w with the
greatest eigenvalues: which layers they move. Without arguments it trains on scikit-learn's digits. A run that was
interrupted goes on when the same command is given again, and ends with the same numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

import ahkernels as ah
from experiments.common import command_line, data, models
from experiments.common.hessian import ParameterVector
from experiments.common.jobs import Job, Run
from experiments.common.measuring import aligned_progress, tracker
from experiments.common.running import run, say
from experiments.common.store import Row, RunStore
from experiments.common.study import Study
from experiments.common.training import Recipe, Trainer
from experiments.early_training import figure
from experiments.early_training.feature_changes import correlations, eigenvectors, evolution
from experiments.early_training.tables import print_tables

TABLE = "eigenvectors"

PAPER = {"batch_size": 128, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 5, "measurements": 30}
FEEDFORWARD = PAPER | {"model": "feedforward", "depth": 10, "width": 256, "lr": 0.003, "probe_size": 1000}
FEEDFORWARD |= {"eigenvectors": 100, "moments": [0.0, 0.05]}
# The output Hessian of ResNet18 holds 60 MB a sample.
IMAGES = PAPER | {"width_factor": 1.0, "lr": 0.01, "probe_size": 500, "eigenvectors": 0}
PRESETS: dict[str, Mapping[str, Any]] = {
    **{name: FEEDFORWARD | {"dataset": name} for name in ("fashion-mnist", "mnist", "kmnist", "cifar10")},
    **{
        f"{dataset}-{model}": IMAGES | {"dataset": dataset, "model": model}
        for dataset in ("cifar10", "cifar100")
        for model in ("vgg19", "resnet18")
    },
}


# ---- command line


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    command_line.add(p, "--dataset", "--data-dir", "--train-size", "--model")
    command_line.add(
        p, "--depth", type=command_line.whole(2), help="linear layers (feedforward); one has no output Hessian"
    )
    command_line.add(p, "--width", default=128, help="units of a hidden layer (feedforward)")
    command_line.add(p, "--width-factor", "--lr", "--momentum", "--weight-decay", "--batch-size")
    command_line.add(p, "--epochs", default=20)
    command_line.add(p, "--probe-size", help="training samples to measure on, stratified")
    command_line.add(p, "--measurements")
    p.add_argument(
        "--eigenvectors",
        type=command_line.whole(0),
        default=100,
        metavar="K",
        help="of the output Hessian, those with the greatest absolute eigenvalues; 0: none",
    )
    p.add_argument(
        "--moments",
        type=command_line.real("a number of at least 0", lambda value: value >= 0),
        nargs="+",
        default=[0.0, 2.0],
        metavar="E",
        help="epochs, also fractions of one, after which to compute eigenvectors, besides the end of training",
    )
    command_line.add(p, "--precision", help="of the alignments; Hessians and features are computed in float64")
    command_line.add(p, "--seed", help="of weights, batches and subsets")


def check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where a moment comes after the end of training."""
    if max(args.moments) > args.epochs:
        p.error(f"argument --moments: expected at most {args.epochs}, the epochs, got {max(args.moments):g}")


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run."""
    model = models.network(args, dataset)
    most = ParameterVector(model).size - 1
    if args.eigenvectors > most:
        raise command_line.UsageError(
            f"argument --eigenvectors: expected at most {most}, one less than the parameters, got {args.eigenvectors}"
        )
    recipe = command_line.recipe(args)
    return [Job(f"seed-{args.seed}", partial(train, args, recipe, model, dataset), recipe)]


def train(args: argparse.Namespace, recipe: Recipe, model: nn.Module, dataset: data.Dataset, store: RunStore) -> int:
    """Train to the end; returns the signal that came, or 0."""
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)
    x, y = data.probe(dataset, args.probe_size, args.seed)
    tracked = tracker(model, (x, y), args.precision)
    with_eigenvectors = moments(args, trainer)

    def measured() -> Row:
        row = aligned_progress(trainer, dataset, tracked)
        found = evolution(trainer, x, y)
        if trainer.iteration in with_eigenvectors:
            say(f"{store.name}: iteration {trainer.iteration}: {args.eigenvectors} eigenvectors of the output Hessian")
            rows = eigenvectors(found, trainer.iteration, args.eigenvectors)
            store.tables[TABLE] = [*store.tables.get(TABLE, []), *rows]
        return row | correlations(found)

    at = {*ah.measurement_grid(trainer.total, args.measurements), *with_eigenvectors}
    return run(store, trainer, at, measured, args.checkpoint_every)


def moments(args: argparse.Namespace, trainer: Trainer) -> set[int]:
    """The iterations at which to compute eigenvectors."""
    if args.eigenvectors == 0:
        return set()
    return {trainer.total, *(round(epochs * trainer.batches_per_epoch) for epochs in args.moments)}


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figure and print the tables."""
    (found,) = runs.values()
    at_moments = figure.moments(found.rows, found.tables.get(TABLE, []))
    path = args.output / "early_training.png"
    figure.early_training(found.rows, at_moments, title(args, dataset), path)
    print_tables(found.rows, at_moments)
    print(f"figure: {path}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """The title says what a reader must know: data, network and recipe."""
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images: {models.described(args)}, seed {args.seed}\n"
        f"learning rate {args.lr:g}, batch size {args.batch_size}, momentum {args.momentum:g}, "
        f"measured on {args.probe_size:,} training images"
    )


STUDY = Study(
    "early_training",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "model", "probe_size", "measurements", "eigenvectors", "moments", "precision"),
    presets=PRESETS,
    check=check,
    tables=[TABLE],
    folder="NAME-DATASET[-MODEL]",
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
