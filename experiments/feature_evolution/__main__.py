"""Evolution of tangent features: what optimal feature evolution captures of gradient descent (appendix D).

Trains the paper's ReLU network by full-batch gradient descent on a few samples, and beside it three schemes
that replace its tangent features: OFE, generalised OFE, and features that stay as they are. Along training it compares
losses, parameters, kernels and alignments, and at a few iterations the change of every layer's alignment in one step
with the paper's prediction (equation 25) and the stages of its derivation. All in float64. Without arguments it runs on
scikit-learn's digits. A run that was interrupted goes on when the same command is given again, and ends with the same
numbers.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import ahkernels as ah
from experiments.common import command_line, data, models
from experiments.common.jobs import Job, Run
from experiments.common.running import run, say
from experiments.common.store import Row, RunStore
from experiments.common.study import Study
from experiments.common.training import DivergedError
from experiments.feature_evolution import figure
from experiments.feature_evolution.alignment_step import rademacher, step_changes
from experiments.feature_evolution.comparison import Comparison
from experiments.feature_evolution.tables import print_tables

# The network is the paper's, which derives the schemes and measures none; biases and Xavier's weights are those of its
# authors' code. The rate of gradient descent has the speed of SGD at 0.003 with momentum 0.9.
PRESETS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {
        "dataset": "fashion-mnist",
        "train_size": 256,
        "depth": 10,
        "width": 256,
        "bias": True,
        "initialisation": "xavier",
        "lr": 0.03,
        "steps": 400,
        "moments": [0, 50, 200],
    },
}
STEPS = "alignment_steps"  # table of equation 25
MOST_ROWS = 10_000  # a dense kernel of so many rows takes 0.8 GB


# ---- command line


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    whole = command_line.whole
    command_line.add(p, "--dataset", "--data-dir")
    command_line.add(p, "--train-size", default=100, help="training samples, stratified; all are in every step")
    command_line.add(p, "--depth", type=whole(2), default=5)
    command_line.add(p, "--width", default=128)
    command_line.add(p, "--bias", "--initialisation")
    command_line.add(p, "--lr", default=0.003, help="learning rate of gradient descent")
    p.add_argument("--steps", type=whole(1), default=400, metavar="T", help="of gradient descent")
    p.add_argument(
        "--ofe-rate",
        type=command_line.real("a number", lambda value: True),
        metavar="R",
        help="lambda of OFE (default: the one closest to generalised OFE in the first step, by least squares)",
    )
    command_line.add(p, "--measurements", default=20)
    p.add_argument(
        "--moments", type=whole(0), nargs="+", default=[0, 30, 300], metavar="T", help="iterations to predict a step at"
    )
    p.add_argument("--probes", type=whole(2), default=200, metavar="N", help="random vectors for each trace")
    command_line.add(p, "--seed", help="of weights, subset and random vectors")


def check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where a moment comes after the end of training."""
    if max(args.moments) > args.steps:
        p.error(f"argument --moments: expected at most {args.steps}, --steps, got {max(args.moments)}")


def load(args: argparse.Namespace) -> data.Dataset:
    """The data set with the samples to train on, in float64."""
    dataset = data.load(args.dataset, args.data_dir)
    most = MOST_ROWS // dataset.classes
    if args.train_size > most:
        raise command_line.UsageError(
            f"argument --train-size: expected at most {most}, since kernels over {dataset.classes} outputs of each are "
            f"held in memory, got {args.train_size}"
        )
    command_line.require_samples(args, dataset, "--train-size", args.train_size)
    dataset = data.training_subset(dataset, args.train_size, args.seed)
    return replace(dataset, train_x=dataset.train_x.double(), test_x=dataset.test_x.double())


# ---- the run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run."""
    return [Job(f"seed-{args.seed}", partial(train, args, dataset))]


def train(args: argparse.Namespace, dataset: data.Dataset, store: RunStore) -> int:
    """Train to the end; returns the signal that came, or 0."""
    compared = Comparison(args, dataset)
    trainer = compared.trainer

    def step() -> list[Row]:
        say(f"{store.name}: iteration {trainer.iteration}, {args.probes} random vectors for the traces of equation 25")
        # A stream of its own for each iteration: no state to keep.
        stream = np.random.SeedSequence(args.seed, spawn_key=(2, trainer.iteration))
        signs = rademacher(compared.parameters.size, args.probes, stream, args.device)
        rows = step_changes(compared.model, compared.x, compared.y, args.lr, signs)
        return [{"iteration": trainer.iteration, **row} for row in rows]

    def measured() -> Row:
        try:
            row = compared.measure()
            if trainer.iteration in args.moments:
                store.tables[STEPS] = store.tables.get(STEPS, []) + step()
        except ah.NonFiniteError as error:
            raise DivergedError(f"training diverged: {error}") from error
        return row

    at = {*ah.measurement_grid(trainer.total, args.measurements), *args.moments}
    return run(store, trainer, sorted(at), measured, args.checkpoint_every)


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figures and print the tables."""
    (found,) = runs.values()
    rows, steps = found.rows, found.tables[STEPS]
    rate = rows[0]["natural_rate"] if args.ofe_rate is None else args.ofe_rate
    paths = args.output / "feature_evolution.png", args.output / "alignment_step.png"
    figure.feature_evolution(rows, rate, title(args, dataset), paths[0])
    figure.alignment_step(rows, steps, title(args, dataset), paths[1])
    print_tables(rows, steps)
    print(f"figures: {paths[0]} and {paths[1]}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """The title says what a reader must know: data, network and how it was trained."""
    return (
        f"{args.dataset}, {len(dataset.train_y)} training images; depth {args.depth}, width {args.width}, "
        f"{models.described_start(args)}\n"
        f"full-batch gradient descent, learning rate {args.lr:g}, seed {args.seed}"
    )


STUDY = Study(
    "feature_evolution",
    __doc__,
    options,
    draw,
    jobs,
    config=(
        *("dataset", "depth", "width", "bias", "initialisation", "lr", "steps", "ofe_rate"),
        *("measurements", "moments", "probes", "seed"),
    ),
    presets=PRESETS,
    distinct=["--moments"],
    check=check,
    load=load,
    tables=[STEPS],
    checkpoint_every=100,
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
