"""Early training: how tangent features move with the output Hessian (figures 5 and 6; appendices B.4 and B.5).

Tests Approximation 1 of the paper along the training of a network. Its first half: the gradient w of the loss by the
outputs points against the centered labels y~. Its second half: a step changes the tangent features along y~, Psi y~, in
the direction of -H_w Psi y~, where H_w is the output Hessian. At a few moments also the eigenvectors of H_w with the
greatest eigenvalues: which layers they move. There is a run for each seed, of which the first has the eigenvectors.
Without arguments it trains on scikit-learn's digits. A run that was interrupted goes on when the same command is given
again, and ends with the same numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ahkernels as ah
from experiments.common import command_line, data, models
from experiments.common.figures import column, named_seeds
from experiments.common.hessian import ParameterVector
from experiments.common.jobs import Job, Run
from experiments.common.measuring import aligned_progress, counted, tracker
from experiments.common.running import run, say
from experiments.common.store import Row, RunStore, csv_of, write_atomically
from experiments.common.study import Study
from experiments.common.training import Recipe, Trainer
from experiments.early_training import figure
from experiments.early_training.feature_changes import correlations, eigenvectors, evolution
from experiments.early_training.tables import collinearity, print_tables

TABLE = "eigenvectors"

COMPARED = (0, 10, 20, 50, 100)  # iterations that are measured in every run, for data sets to be compared at

# Networks are the paper's; probes, batches, biases and Xavier's weights are those of its authors' code for these
# figures. The seeds and the epochs are ours. Eigenvectors are of CIFAR-10 alone, as in figure 5.
PAPER = {"batch_size": 200, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 5, "measurements": 30, "probe_size": 500}
FEEDFORWARD = PAPER | {"model": "feedforward", "depth": 10, "width": 256, "bias": True, "initialisation": "xavier"}
FEEDFORWARD |= {"lr": 0.003, "seeds": [0, 1, 2], "eigenvectors": 0}
# The output Hessian of ResNet18 holds 60 MB a sample.
IMAGES = PAPER | {"width_factor": 1.0, "lr": 0.01, "eigenvectors": 0}
PRESETS: dict[str, Mapping[str, Any]] = {
    **{name: FEEDFORWARD | {"dataset": name} for name in ("fashion-mnist", "mnist", "kmnist")},
    "cifar10": FEEDFORWARD | {"dataset": "cifar10", "eigenvectors": 100, "moments": [0.0, 0.5]},
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
    command_line.add(p, "--bias", help="train biases, which are zero at the start (feedforward)")
    command_line.add(p, "--initialisation")
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
    p.add_argument(
        "--seeds",
        type=command_line.seed,
        nargs="+",
        default=[0],
        metavar="S",
        help="of weights, batches and the samples to measure on, one run for each; eigenvectors are of the first",
    )


def check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where options do not fit the model, or a moment comes after the end of training."""
    command_line.require_feedforward(p, args)
    if args.eigenvectors and max(args.moments) > args.epochs:
        p.error(f"argument --moments: expected at most {args.epochs}, the epochs, got {max(args.moments):g}")


def load(args: argparse.Namespace) -> data.Dataset:
    """The data set, with the same training samples for every seed."""
    return command_line.load(args, subset_seed=0)


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run for each seed."""
    most = ParameterVector(models.network(args, dataset, args.seeds[0])).size - 1
    if args.eigenvectors > most:
        raise command_line.UsageError(
            f"argument --eigenvectors: expected at most {most}, one less than the parameters, got {args.eigenvectors}"
        )
    recipes = {seed: command_line.recipe(args, seed=seed) for seed in args.seeds}
    return [
        Job(
            f"seed-{seed}", partial(train, args, recipe, dataset), recipe, {"eigenvectors": eigenvectors_of(args, seed)}
        )
        for seed, recipe in recipes.items()
    ]


def eigenvectors_of(args: argparse.Namespace, seed: int) -> int:
    """How many eigenvectors the run of a seed computes."""
    return int(args.eigenvectors) if seed == args.seeds[0] else 0


def train(args: argparse.Namespace, recipe: Recipe, dataset: data.Dataset, store: RunStore) -> int:
    """Train the network of a seed to the end; returns the signal that came, or 0."""
    model = models.network(args, dataset, recipe.seed)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)
    x, y = data.probe(dataset, args.probe_size, recipe.seed)
    tracked = tracker(model, (x, y), args.precision, centering="per_output")  # as the paper's authors have it
    count = eigenvectors_of(args, recipe.seed)
    at_moments = moments(args, trainer)

    def measured() -> Row:
        row = aligned_progress(trainer, dataset, tracked)
        found = evolution(trainer, x, y)
        if count and trainer.iteration in at_moments:
            say(f"{store.name}: iteration {trainer.iteration}: {count} eigenvectors of the output Hessian")
            rows = eigenvectors(found, trainer.iteration, count)
            store.tables[TABLE] = [*store.tables.get(TABLE, []), *rows]
        return row | correlations(found)

    at = {*ah.measurement_grid(trainer.total, args.measurements), *COMPARED, *at_moments}
    return run(store, trainer, at, measured, args.checkpoint_every)


def moments(args: argparse.Namespace, trainer: Trainer) -> set[int]:
    """The iterations at which the first seed computes eigenvectors, and all seeds are measured."""
    if args.eigenvectors == 0:
        return set()
    return {trainer.total, *(round(epochs * trainer.batches_per_epoch) for epochs in args.moments)}


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figure, and write and print the tables."""
    found = [run.rows for run in runs.values()]
    first = runs[f"seed-{args.seeds[0]}"]
    at_moments = figure.moments(first.rows, first.tables.get(TABLE, []))
    of_seeds = collinearity(found)
    write_atomically(args.output / "collinearity.csv", csv_of(of_seeds))
    path = args.output / "early_training.png"
    figure.early_training(found, at_moments, title(args, dataset, found), path)
    print_tables(first.rows, at_moments, [line for line in of_seeds if line["iteration"] in COMPARED])
    print(f"figure: {path}")


def title(args: argparse.Namespace, dataset: data.Dataset, runs: Sequence[Sequence[Row]]) -> str:
    """The title says what a reader must know: data, network, recipe, and how well it came out."""
    accuracy = float(column(runs, "test_accuracy")[:, -1].mean())
    bands = " (lines: mean, bands: range)" if len(args.seeds) > 1 else ""
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images: {models.described(args)}, test accuracy "
        f"{counted(accuracy, len(dataset.test_y))}\n"
        f"learning rate {args.lr:g}, batch size {args.batch_size}, momentum {args.momentum:g}, "
        f"measured on {args.probe_size:,} training images, {named_seeds(args.seeds)}{bands}"
    )


STUDY = Study(
    "early_training",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "model", "probe_size", "measurements", "moments", "precision"),
    presets=PRESETS,
    distinct=["--seeds"],
    check=check,
    load=load,
    tables=[TABLE],
    folder="NAME-DATASET[-MODEL]",
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
