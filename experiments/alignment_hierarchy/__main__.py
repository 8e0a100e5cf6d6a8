"""Alignment hierarchy: which layers' tangent kernels align with the labels (figures 2, 7, 9 and 10).

Trains the paper's bias-free ReLU network and measures every layer's alignment at log-spaced iterations: with each
output centered over the samples, as in the paper's figures, and beside it with one mean of all (equation 6).
Without arguments it trains on scikit-learn's digits. A run that was interrupted, by whatever, goes on when
the same command is given again, and ends with the same numbers.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from functools import partial

import numpy as np

import ahkernels as ah
from experiments.alignment_hierarchy import figure
from experiments.alignment_hierarchy.tables import print_table
from experiments.common import command_line, data
from experiments.common.jobs import Job, Run
from experiments.common.measuring import progress, tracker
from experiments.common.models import feedforward_on
from experiments.common.running import run
from experiments.common.store import Row, RunStore
from experiments.common.study import Study
from experiments.common.training import Trainer

PAPER = {
    "depth": 10,
    "width": 256,
    "lr": 0.003,
    "batch_size": 128,
    "epochs": 100,
    "probe_size": 1000,
    "measurements": 40,
}
LOSSES = ("iteration", "epoch", "train_loss", "test_loss", "test_accuracy")


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    command_line.add(p, "--dataset", "--data-dir", "--depth", "--width")
    command_line.add(p, "--lr", "--momentum", "--weight-decay", "--batch-size", "--epochs")
    command_line.add(p, "--probe-size", "--measurements", "--precision")
    p.add_argument(
        "--seeds", type=command_line.seed, nargs="+", default=[0], metavar="S", help="one run for each, drawn together"
    )


def load(args: argparse.Namespace) -> data.Dataset:
    """The whole data set, with samples enough for the probe."""
    dataset = data.load(args.dataset, args.data_dir)
    command_line.require_samples(args, dataset, "--probe-size", args.probe_size)
    return dataset


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run for each seed."""
    return [Job(f"seed-{seed}", partial(train, args, seed, dataset), settings={"seed": seed}) for seed in args.seeds]


def train(args: argparse.Namespace, seed: int, dataset: data.Dataset, store: RunStore) -> int:
    """Train the network of a seed to the end; returns the signal that came, or 0."""
    model = feedforward_on(dataset, args.width, args.depth, seed)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, command_line.recipe(args, seed=seed))
    tracked = tracker(
        model,
        data.probe(dataset, args.probe_size, seed),
        args.precision,
        centering=("per_output", "global"),
        statistics=("forward_cka", "backward_cka"),
    )
    at = ah.measurement_grid(trainer.total, args.measurements)
    return run(store, trainer, at, lambda: measure(trainer, dataset, tracked), args.checkpoint_every)


def measure(trainer: Trainer, dataset: data.Dataset, tracked: ah.AlignmentTracker) -> Row:
    """Measure losses, test accuracy and every layer's alignment; changes nothing, draws no random number."""
    losses = progress(trainer, dataset)
    with warnings.catch_warnings():
        # Per output, nothing is left of the last layer's backward Gram: its alignment is nan.
        warnings.filterwarnings(
            "ignore", r"kernel of layer '[^']+ \(backward Gram\)' is constant, so", ah.DegenerateKernelWarning
        )
        reports = tracked.update(trainer.iteration).reports
    row = {name: losses[name] for name in LOSSES}
    for centering, report in reports.items():
        row |= {f"cka/{centering}/{layer}": value for layer, value in report.items()}
    grams = reports["per_output"].row()
    return row | {name: value for name, value in grams.items() if not name.startswith("cka/")}


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, found: dict[str, Run]) -> None:
    """Draw the figure and print the table of all seeds."""
    runs = [run.rows for run in found.values()]
    path = args.output / "alignment_hierarchy.png"
    figure.alignment_hierarchy(runs, title(args, runs), path)
    print_table(runs)
    print(f"figure: {path}")


def title(args: argparse.Namespace, runs: list[list[Row]]) -> str:
    """The title says what a reader must know: data, network, recipe and how well it did."""
    accuracy, loss = (np.mean([rows[-1][name] for rows in runs]) for name in ("test_accuracy", "test_loss"))
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {args.seeds[0]}"
    return (
        f"{args.dataset}, each output centered over the samples: test accuracy {accuracy:.1%}, test loss {loss:.2f}\n"
        f"depth {args.depth}, width {args.width}, learning rate {args.lr:g}, "
        f"batch size {args.batch_size}, {seeds}"
    )


STUDY = Study(
    "alignment_hierarchy",
    __doc__,
    options,
    draw,
    jobs,
    config=(
        *("dataset", "depth", "width", "probe_size", "measurements", "precision"),
        *("lr", "momentum", "weight_decay", "batch_size", "epochs"),
    ),
    presets={name: {**PAPER, "dataset": name} for name in ("mnist", "fashion-mnist", "kmnist", "cifar10")},
    distinct=["--seeds"],
    load=load,
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
