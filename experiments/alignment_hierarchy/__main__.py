"""Alignment hierarchy: which layers' tangent kernels align with the labels (figures 2, 7, 9 and 10).

Trains the paper's ReLU network and measures every layer's alignment along the way, on training samples and on test
samples: with each output centered over the samples, as in the paper's figures, and beside it with one mean of all
(equation 6); and with shuffled labels, which is the level of chance. Without arguments it trains on scikit-learn's
digits. A run that was interrupted, by whatever, goes on when the same command is given again, and ends with the same
numbers.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import ahkernels as ah
from experiments.alignment_hierarchy import figure, tables
from experiments.alignment_hierarchy.null_level import NullLevel
from experiments.common import command_line, data
from experiments.common.figures import named_seeds
from experiments.common.jobs import Job, Run
from experiments.common.measuring import (
    CENTERINGS,
    alignments,
    authors_grid,
    constant_backward_grams,
    progress,
    reports,
    tracker,
)
from experiments.common.models import feedforward_on
from experiments.common.running import run
from experiments.common.store import Row, RunStore, csv_of, write_atomically
from experiments.common.study import Study
from experiments.common.training import Recipe, Trainer

# Depth, width, rate and epochs are the paper's, with the rates of its tables 1 to 3 where they have the data set; the
# rest is how its authors' code trains and measures. The seeds are ours.
PAPER = {
    "depth": 10,
    "width": 256,
    "bias": True,
    "lr": 0.003,
    "batch_size": 200,
    "epochs": 100,
    "probe_size": 200,
    "iterations": "authors",
    "seeds": [0, 1, 2],
}
CIFAR10 = {**PAPER, "dataset": "cifar10", "augment": True}
PRESETS = {
    **{name: {**PAPER, "dataset": name} for name in ("mnist", "fashion-mnist", "kmnist")},
    "fashion-mnist-depth20": {**PAPER, "dataset": "fashion-mnist", "depth": 20, "lr": 0.004},
    "cifar10": {**CIFAR10, "lr": 0.005},
    "cifar10-depth20": {**CIFAR10, "depth": 20, "lr": 0.003},
}
ITERATIONS = ("log-spaced", "authors")
GRAMS = {"train": ("forward_cka", "backward_cka"), "test": ()}  # also measured, by probe


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    command_line.add(p, "--dataset", "--data-dir", "--depth", "--width", "--bias", "--initialisation")
    command_line.add(p, "--lr", "--momentum", "--weight-decay", "--batch-size", "--epochs", "--augment")
    command_line.add(p, "--probe-size", help=command_line.TWO_PROBES)
    p.add_argument(
        "--iterations",
        choices=ITERATIONS,
        default=ITERATIONS[0],
        help="to measure at: log-spaced, or those of the paper's authors, 0 and 5 floor(1.15^k)",
    )
    command_line.add(p, "--measurements", help="how many log-spaced ones, first and last included")
    command_line.add(p, "--precision")
    p.add_argument(
        "--seeds", type=command_line.seed, nargs="+", default=[0], metavar="S", help="one run for each, drawn together"
    )


def load(args: argparse.Namespace) -> data.Dataset:
    """The whole data set, with samples enough for the probes."""
    dataset = data.load(args.dataset, args.data_dir)
    command_line.require_probes(args, dataset)
    return dataset


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run for each seed."""
    recipes = {seed: command_line.recipe(args, seed=seed) for seed in args.seeds}
    return [Job(f"seed-{seed}", partial(train, args, recipe, dataset), recipe) for seed, recipe in recipes.items()]


def train(args: argparse.Namespace, recipe: Recipe, dataset: data.Dataset, store: RunStore) -> int:
    """Train the network of a seed to the end; returns the signal that came, or 0."""
    model = feedforward_on(
        dataset, args.width, args.depth, recipe.seed, bias=args.bias, initialisation=args.initialisation
    )
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)
    probes = data.probes(dataset, args.probe_size, recipe.seed)
    trackers = {
        part: tracker(model, probe, args.precision, centering=CENTERINGS, statistics=GRAMS[part])
        for part, probe in probes.items()
    }
    chance = {part: NullLevel(probe, dataset.classes, args.precision) for part, probe in probes.items()}
    authors = args.iterations == "authors"
    at = authors_grid(trainer.total) if authors else ah.measurement_grid(trainer.total, args.measurements)
    return run(store, trainer, at, lambda: measure(trainer, dataset, trackers, chance), args.checkpoint_every)


def measure(
    trainer: Trainer,
    dataset: data.Dataset,
    trackers: dict[str, ah.AlignmentTracker],
    chance: dict[str, NullLevel],
) -> Row:
    """Measure losses, accuracies and every layer's alignment; changes nothing, draws no random number."""
    row = progress(trainer, dataset)
    for part, tracked in trackers.items():
        with constant_backward_grams():
            found = reports(trainer, tracked)
        row |= alignments(part, found) | chance[part].row(part, trainer.model, found)
        grams = found["per_output"].row()
        row |= {name: value for name, value in grams.items() if not name.startswith("cka/")}
    return row


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, found: dict[str, Run]) -> None:
    """Draw the figures, and write and print the tables of all seeds."""
    runs = [run.rows for run in found.values()]
    peaks, accuracies = tables.peaks(runs), tables.accuracies(runs, len(dataset.test_y))
    write_atomically(args.output / "peaks.csv", csv_of(peaks))
    write_atomically(args.output / "accuracies.csv", csv_of(accuracies))
    tables.print_tables(runs, peaks, accuracies)
    for part, name in figure.PROBES.items():
        path = args.output / f"alignment_hierarchy{name}.png"
        figure.alignment_hierarchy(runs, part, title(args, part, accuracies[0]), path)
        print(f"figure: {path}")


def title(args: argparse.Namespace, part: str, at_the_end: Row) -> str:
    """The title says what a reader must know: data, network, recipe and how well it did."""
    accuracy = f"{at_the_end['test_accuracy']:.1%} ± {at_the_end['binomial_error']:.1%} (binomial)"
    return (
        f"{args.dataset}, alignment on {args.probe_size} {figure.SAMPLES[part]}, test accuracy {accuracy}\n"
        f"depth {args.depth}, width {args.width}, {'with' if args.bias else 'without'} biases, "
        f"learning rate {args.lr:g}, batch size {args.batch_size}, {named_seeds(args.seeds)}"
    )


STUDY = Study(
    "alignment_hierarchy",
    __doc__,
    options,
    draw,
    jobs,
    config=(
        *("dataset", "depth", "width", "bias", "initialisation"),
        *("probe_size", "iterations", "measurements", "precision"),
    ),
    presets=PRESETS,
    distinct=["--seeds"],
    check=command_line.require_colour,
    load=load,
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
