"""Networks whose last layer alone is trained: how alignment changes where features cannot (figure 18, table 4).

All layers of the paper's ReLU network but the last stay as they are initialised, so that the last one is a
linear model of fixed features. Forward Grams then never change; backward Grams do, and with them the alignment of every
frozen layer. The last layer's initial weights are drawn from N(0, s^2 2 / N) for every width N and noise scale s. Runs
are independent: start the same command several times, and the processes share them; whatever was interrupted goes on
when the command is given again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import ahkernels as ah
from experiments.common import command_line, data
from experiments.common.jobs import Job, Run, ended, run_to_end_or_divergence
from experiments.common.measuring import CENTERING_NAMES, progress
from experiments.common.running import say
from experiments.common.store import Row, RunStore, csv_of, write_atomically
from experiments.common.study import Study
from experiments.common.training import DivergedError, Recipe, Trainer
from experiments.frozen_networks import figure
from experiments.frozen_networks.figure import Outcome
from experiments.frozen_networks.frozen_network import Frozen, aligned, freeze, last_layer
from experiments.frozen_networks.tables import print_table, summary

REFERENCE = 256  # the width that has the learning rate --lr
# Widths, noise scales and depth are the paper's; biases, batches and probes are those of its authors' code for other
# figures.
MNIST: dict[str, Any] = {
    "dataset": "mnist",
    "widths": [2048, 10_000],
    "noise_scales": [0.01, 1.0],
    "depth": 10,
    "bias": True,
    "lr": 0.05,
    "batch_size": 200,
    "epochs": 100,
    "probe_size": 200,
    "measurements": 15,
}
PRESETS = {
    "mnist": MNIST,
    "mnist-gpu": MNIST | {"widths": [2048, 10_000, 75_000], "device": "cuda", "measurements": 12},
}


@dataclass(frozen=True)
class Condition:
    """A width N, and the scale s of the last layer's initial weights."""

    width: int
    noise: float

    @property
    def name(self) -> str:
        """The name of the run's folder, which is printed with all messages."""
        return f"width{self.width}-noise{self.noise}"


# ---- command line


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    command_line.add(p, "--dataset", "--data-dir", "--train-size")
    p.add_argument(
        "--widths",
        type=command_line.whole(1),
        nargs="+",
        default=[128, 512],
        metavar="N",
        help="units of hidden layers",
    )
    p.add_argument(
        "--noise-scales",
        type=command_line.positive,
        nargs="+",
        default=[0.01, 1.0],
        metavar="s",
        help="deviations of the last layer's initial weights, times that of the other layers",
    )
    command_line.add(
        p, "--depth", type=command_line.whole(2), default=5, help="linear layers, of which the last learns"
    )
    command_line.add(p, "--bias", help="of all layers, zero at the start; only the last layer's is trained")
    command_line.add(
        p,
        "--lr",
        default=0.1,
        help=f"learning rate of SGD at width {REFERENCE}; at width N it is {REFERENCE} / N times this, because the "
        "squared norm of the features, and with it the change of outputs in a step, grows as N",
    )
    command_line.add(p, "--momentum", "--weight-decay", "--batch-size", "--epochs", "--probe-size", "--measurements")
    command_line.add(p, "--precision", "--seed")


def conditions(args: argparse.Namespace) -> list[Condition]:
    """The conditions in the order in which one process trains them."""
    return [Condition(width, noise) for width in args.widths for noise in args.noise_scales]


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run for each condition."""
    # Only the latest width's features are kept: they are most of the memory, and serve all its noise scales.
    frozen = lru_cache(maxsize=1)(lambda width: freeze(args, dataset, width))
    found = []
    for of in conditions(args):
        recipe = command_line.recipe(args, lr=learning_rate(args, of))
        finished = partial(ended, total=recipe.steps(len(dataset.train_y)))
        work = partial(train, args, of, recipe, dataset, frozen)
        found.append(Job(of.name, work, recipe, {"width": of.width, "noise_scale": of.noise}, finished))
    return found


def learning_rate(args: argparse.Namespace, of: Condition) -> float:
    """The learning rate at the width of a condition."""
    return args.lr * REFERENCE / of.width


def train(
    args: argparse.Namespace,
    of: Condition,
    recipe: Recipe,
    dataset: data.Dataset,
    frozen: Callable[[int], Frozen],
    store: RunStore,
) -> int:
    """Train a last layer to its end; returns the signal that came, or 0."""
    shared = frozen(of.width)
    last = last_layer(shared.network, of.noise, args.bias)
    trainer = Trainer(last, shared.features.train_x, shared.features.train_y, recipe)
    x, y = data.probe(dataset, args.probe_size, args.seed)

    def measured() -> Row:
        row = progress(trainer, shared.features)
        try:
            return row | aligned(shared.network, last, x, y, args.precision)
        except ah.NonFiniteError as error:
            raise DivergedError(f"training diverged: {error}") from error

    at = ah.measurement_grid(trainer.total, args.measurements)
    return run_to_end_or_divergence(store, trainer, at, measured, args.checkpoint_every)


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figure and write and print the table of all that has been measured."""
    outcomes, lines = [], []
    for of in conditions(args):
        measured = runs[of.name].rows
        rows = [row for row in measured if not math.isnan(row["train_loss"])]
        if not rows:
            continue
        lines.append(summary(of.width, of.noise, rows, len(dataset.test_y)))
        end = "diverged" if len(rows) < len(measured) else f"{rows[-1]['epoch']:g} epochs"
        accuracy = f"{lines[-1]['test_accuracy']:.1%} ± {lines[-1]['binomial_error']:.1%} (binomial)"
        outcomes.append(Outcome(of.width, of.noise, rows, f"{end}; test accuracy {accuracy}"))
    if not outcomes:
        say("nothing to draw: no run has been measured yet")
        return
    write_atomically(args.output / "frozen_networks.csv", csv_of(lines))
    print_table(lines)
    for centering, name in figure.FILES.items():
        path = args.output / name
        figure.frozen_networks(outcomes, centering, title(args, dataset, centering), path)
        print(f"figure: {path}")


def title(args: argparse.Namespace, dataset: data.Dataset, centering: str) -> str:
    """The title says what a reader must know: data, networks and training."""
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images, alignment on {args.probe_size:,} of them, "
        f"{CENTERING_NAMES[centering]}\n"
        f"depth {args.depth}, {'with' if args.bias else 'without'} biases, only the last layer trained\n"
        f"learning rate {args.lr:g} · {REFERENCE} / width, batch size {args.batch_size}, seed {args.seed}"
    )


STUDY = Study(
    "frozen_networks",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "depth", "bias", "probe_size", "measurements", "precision"),
    presets=PRESETS,
    distinct=("--widths", "--noise-scales"),
    shared=True,
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
