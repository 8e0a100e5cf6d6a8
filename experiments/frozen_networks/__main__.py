"""Networks whose last layer alone is trained: how alignment changes where features cannot (figure 18, table 4).

All layers of the paper's bias-free ReLU network but the last stay as they are initialised, so that the last one is a
linear model of fixed features. Forward Grams then never change; backward Grams do, and with them the alignment of every
frozen layer. The last layer's initial weights are drawn from N(0, s^2 2 / N) for every width N and noise scale s. Runs
are independent: start the same command several times, and the processes share them; whatever was interrupted goes on
when the command is given again.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import ahkernels as ah
from experiments.common import command_line, data, figures
from experiments.common.jobs import Job, Run, ended, run_to_end_or_divergence
from experiments.common.measuring import progress
from experiments.common.running import say
from experiments.common.store import Row, RunStore, csv_of, write_atomically
from experiments.common.study import Study
from experiments.common.training import DivergedError, Recipe, Trainer
from experiments.frozen_networks import figure
from experiments.frozen_networks.figure import Outcome
from experiments.frozen_networks.initial_network import InitialNetwork

REFERENCE = 256  # the width that has the learning rate --lr
MNIST: dict[str, Any] = {
    "dataset": "mnist",
    "widths": [2048, 10_000],
    "noise_scales": [0.01, 1.0],
    "depth": 10,
    "lr": 0.05,
    "batch_size": 128,
    "epochs": 100,
    "probe_size": 500,
    "measurements": 30,
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


@dataclass(frozen=True)
class Frozen:
    """What all runs of one width share.

    Attributes:
        network: The network as initialised.
        features: The data set with the last layer's inputs, [n, N], in place of the images.
    """

    network: InitialNetwork
    features: data.Dataset


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


# ---- features


def freeze(args: argparse.Namespace, dataset: data.Dataset, width: int) -> Frozen:
    """Make the network of a width and its features. Both follow from the seed, and are made anew when a run goes on."""
    count = len(dataset.train_y) + len(dataset.test_y)
    say(f"width {width}: features of {count:,} images, which no checkpoint holds")
    network = InitialNetwork(dataset.train_x.shape[1], width, args.depth, dataset.classes, args.seed, args.device)
    train_x, test_x = (
        network.features(x, f"width {width}, {part} images")
        for part, x in (("training", dataset.train_x), ("test", dataset.test_x))
    )
    return Frozen(network, replace(dataset, train_x=train_x, test_x=test_x))


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run for each condition."""
    # Only the latest width's features are kept: they are most of the memory, and serve all its noise scales.
    frozen = functools.lru_cache(maxsize=1)(lambda width: freeze(args, dataset, width))
    return [job(args, of, dataset, frozen) for of in conditions(args)]


def job(args: argparse.Namespace, of: Condition, dataset: data.Dataset, frozen: Callable[[int], Frozen]) -> Job:
    """The run of one condition."""
    recipe = command_line.recipe(args, lr=learning_rate(args, of))
    total = recipe.steps(len(dataset.train_y))
    return Job(
        of.name,
        partial(train, args, of, recipe, dataset, frozen),
        recipe,
        {"width": of.width, "noise_scale": of.noise},
        finished=lambda rows: ended(rows, total),
    )


def learning_rate(args: argparse.Namespace, of: Condition) -> float:
    """The learning rate at the width of a condition."""
    return args.lr * REFERENCE / of.width


@torch.no_grad()
def last_layer(network: InitialNetwork, noise: float) -> nn.Linear:
    """The last layer of a network as initialised, times ``noise``."""
    weight = noise * network.weight(network.depth)
    last = nn.utils.skip_init(nn.Linear, *reversed(weight.shape), bias=False, device=weight.device)
    last.weight.copy_(weight)
    return last


def aligned(network: InitialNetwork, last: nn.Linear, x: Tensor, y: Tensor, precision: str) -> Row:
    """Columns cka/<layer>, forward_cka/<layer> and backward_cka/<layer>."""
    found: dict[str, dict[str, float]] = {"cka": {}, "forward_cka": {}, "backward_cka": {}}
    for kernel in network.tangent_kernels(x, last.weight.detach(), precision):
        found["cka"][kernel.name] = ah.cka(kernel, y)
        found["forward_cka"][kernel.name] = ah.cka(kernel.forward_gram(), y)
        found["backward_cka"][kernel.name] = ah.cka(kernel.backward_gram(), y)
    return {f"{name}/{layer}": of[layer] for name, of in found.items() for layer in reversed(of)}


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
    last = last_layer(shared.network, of.noise)
    trainer = Trainer(last, shared.features.train_x, shared.features.train_y, recipe)
    x, y = data.probe(dataset, args.probe_size, args.seed)

    def measured() -> Row:
        row = progress(trainer, shared.features)
        try:
            return row | aligned(shared.network, last, x, y, args.precision)
        except ValueError as error:  # the arguments fit: a layer's gradients are not finite
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
        lines.append(summary(of, rows))
        end = "diverged" if len(rows) < len(measured) else f"{rows[-1]['epoch']:g} epochs"
        accuracies = (f"{part} {lines[-1][f'best_{part}_accuracy']:.1%}" for part in ("train", "test"))
        outcomes.append(Outcome(of.width, of.noise, rows, f"{end}; best {', '.join(accuracies)}"))
    if not outcomes:
        say("nothing to draw: no run has been measured yet")
        return
    write_atomically(args.output / "frozen_networks.csv", csv_of(lines))
    path = args.output / "frozen_networks.png"
    figure.frozen_networks(outcomes, title(args, dataset), path)
    print_table(lines)
    print(f"figure: {path}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """The title says what a reader must know: data, networks and training."""
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images, alignment on {args.probe_size:,} of them\n"
        f"depth {args.depth}, only the last layer trained, learning rate {args.lr:g} · {REFERENCE} / width, "
        f"batch size {args.batch_size}, seed {args.seed}"
    )


def summary(of: Condition, rows: Sequence[Row]) -> Row:
    """Make one line of the table: best accuracies over training (table 4), and the peak of alignment at both ends."""
    (peak_before, cka_before), (peak, cka) = figures.peak(rows[0]), figures.peak(rows[-1])
    return {
        "width": of.width,
        "noise_scale": of.noise,
        "epochs": rows[-1]["epoch"],
        "best_train_accuracy": max(row["train_accuracy"] for row in rows),
        "best_test_accuracy": max(row["test_accuracy"] for row in rows),
        "peak_before": peak_before,
        "cka_before": cka_before,
        "peak": peak,
        "cka": cka,
    }


def print_table(lines: Sequence[Row]) -> None:
    """Print a line for each run."""
    names = (
        "width",
        "noise scale",
        "epochs",
        "best train",
        "best test",
        "peak before",
        "its CKA",
        "peak after",
        "its CKA",
    )
    print("".join(f"{name:>13}" for name in names))
    for line in lines:
        print(
            f"{line['width']:>13}{line['noise_scale']:>13g}{line['epochs']:>13g}{line['best_train_accuracy']:>13.1%}"
            f"{line['best_test_accuracy']:>13.1%}{line['peak_before']:>13g}{line['cka_before']:>13.4f}"
            f"{line['peak']:>13g}{line['cka']:>13.4f}"
        )


STUDY = Study(
    "frozen_networks",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "depth", "probe_size", "measurements", "precision"),
    presets=PRESETS,
    distinct=("--widths", "--noise-scales"),
    shared=True,
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
