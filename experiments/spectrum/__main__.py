"""Spectrum and stable rank of tangent kernels and Fisher information by layer, after training (figures 19 to 23).

Trains a network from the same start under several conditions: learning rates, and a fraction of the training labels
drawn at random. Alignment and correlation are with the labels that the network was trained on,
random ones included, for those are what training aligns the kernels with; test accuracy is on true labels. Without
arguments it trains on scikit-learn's digits. A run that was interrupted goes on when the same command is given again,
and ends with the same numbers.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from experiments.common import command_line, data, models
from experiments.common.jobs import Job, Run
from experiments.common.measuring import aligned_progress, linear_layers, tracker
from experiments.common.running import run, say
from experiments.common.store import Row, RunStore
from experiments.common.study import Study
from experiments.common.training import Recipe, Trainer
from experiments.spectrum import figure
from experiments.spectrum.conditions import Condition, condition
from experiments.spectrum.figure import MOST_CONDITIONS, Outcome
from experiments.spectrum.tables import print_tables, spectra

TABLE = "eigenvalues"
STATISTICS = ("stable_rank", "label_correlation", "fisher_stable_rank", "fisher_label_correlation")


PRESETS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {
        "dataset": "fashion-mnist",
        "conditions": [Condition(0.01, 0), Condition(0.003, 0), Condition(0.0005, 0), Condition(0.0005, 0.2)],
        "batch_size": 64,
        "epochs": 100,
        "probe_size": 1000,
    },
    "cifar10-vgg19": {
        "dataset": "cifar10",
        "augment": True,
        "model": "vgg19",
        "width_factor": 1.0,
        "conditions": [Condition(0.01, 0), Condition(0.001, 0), Condition(0.01, 0.2), Condition(0.001, 0.2)],
        "batch_size": 128,
        "epochs": 100,
        "probe_size": 200,
    },
}


# ---- command line


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    command_line.add(p, "--dataset", "--data-dir", "--train-size")
    p.add_argument(
        "--conditions",
        type=condition,
        nargs="+",
        default=[condition(text) for text in ("0.01", "0.0005", "0.0005:0.2")],
        metavar="LR[:F]",
        help="what to compare: learning rates of SGD, with a fraction F of the training labels drawn anew, uniformly",
    )
    command_line.add(p, "--augment", "--model")
    command_line.add(p, "--depth", help="linear layers (feedforward)")
    command_line.add(p, "--width", help="units of a hidden layer (feedforward)")
    command_line.add(p, "--bias", help="train biases, which are zero at the start (feedforward)")
    command_line.add(p, "--initialisation", "--width-factor", "--momentum", "--weight-decay", "--batch-size")
    command_line.add(p, "--epochs", help="passes over the training set, in every condition")
    command_line.add(
        p,
        "--probe-size",
        default=128,
        help="training samples to measure on, stratified, the same in every condition; time grows as n cubed",
    )
    p.add_argument(
        "--eigenvalues", type=command_line.whole(1), default=200, metavar="K", help="how many to keep, the largest"
    )
    command_line.add(p, "--precision", "--seed")


def check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where options do not fit model or data, or a figure cannot show so many conditions."""
    command_line.require_feedforward(p, args)
    command_line.require_colour(p, args)
    if len(args.conditions) > MOST_CONDITIONS:
        p.error(
            f"argument --conditions: expected at most {MOST_CONDITIONS}, which a figure can tell "
            f"apart, got {len(args.conditions)}"
        )


def load(args: argparse.Namespace) -> data.Dataset:
    """The data set, on whose probe a kernel has as many eigenvalues as were asked for."""
    dataset = command_line.load(args)
    rows = args.probe_size * dataset.classes
    if args.eigenvalues > rows:
        raise command_line.UsageError(
            f"argument --eigenvalues: expected at most {rows}, the rows of a kernel ({args.probe_size} samples, "
            f"{dataset.classes} outputs), got {args.eigenvalues}"
        )
    return dataset


# ---- one condition


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run for each condition."""
    recipes = {of: command_line.recipe(args, lr=of.lr) for of in args.conditions}
    return [
        Job(of.name, partial(train, args, of, recipe, dataset), recipe, {"label_noise": of.noise})
        for of, recipe in recipes.items()
    ]


def train(args: argparse.Namespace, of: Condition, recipe: Recipe, published: data.Dataset, store: RunStore) -> int:
    """Train under a condition to the end; returns the signal that came, or 0."""
    dataset = data.with_label_noise(published, of.noise, args.seed)
    model = models.network(args, dataset, args.seed)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)
    # By the published labels, so that every condition is measured on the same images.
    probe = data.stratified_subset(published.train_y, args.probe_size, args.seed).to(args.device)
    x, y = dataset.train_x[probe], dataset.train_y[probe]

    layers = linear_layers(model)
    tracked = tracker(model, (x, y), args.precision, statistics=STATISTICS)

    def measured() -> Row:
        if trainer.iteration == trainer.total:
            say(f"{of.name}: trained; {args.eigenvalues} eigenvalues for each of {len(layers)} layers")
            store.tables[TABLE] = spectra(model, x, layers, args.eigenvalues, args.precision)
        return aligned_progress(trainer, dataset, tracked)

    return run(store, trainer, [0, trainer.total], measured, args.checkpoint_every)


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figures and print the tables of all conditions."""
    outcomes = [
        Outcome(of.name, of.label, len(dataset.test_y), runs[of.name].rows, runs[of.name].tables[TABLE])
        for of in args.conditions
    ]
    paths = args.output / "spectrum.png", args.output / "stable_rank.png"
    figure.spectrum(outcomes, title(args, dataset), paths[0])
    figure.stable_rank(outcomes, title(args, dataset), paths[1])
    print_tables(outcomes, args.eigenvalues)
    print(f"figures: {paths[0]} and {paths[1]}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """The title says what a reader must know: data, network and how it was trained."""
    return (
        f"{command_line.training_images(args, dataset)}; {models.described(args)}, "
        f"seed {args.seed}\n"
        f"{args.epochs} epochs at batch size {args.batch_size}; measured on {args.probe_size:,} training images; "
        "accuracies ± binomial error"
    )


STUDY = Study(
    "spectrum",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "model", "probe_size", "eigenvalues", "precision"),
    presets=PRESETS,
    distinct=["--conditions"],
    check=check,
    load=load,
    tables=[TABLE],
    folder="NAME-DATASET[-MODEL]",
    remedy="smaller learning rates in --conditions",
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
