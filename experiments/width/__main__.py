"""Width: the alignment hierarchy of one family of networks from narrow to wide, after the same training.

The paper's network at several widths N, with learning rates lr * (256 / N)^e for one or several exponents e. With
e = 1 outputs change equally fast at every width, and tangent kernels move the less the wider the network is; smaller
exponents leave wide networks more of feature learning, for as long as they train stably. Beside them stands the
alignment that a network of infinite width has before training (section 3.2). Runs are independent: start the same
command several times, and the processes share them; whatever was interrupted goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import ahkernels as ah
from experiments.common import command_line, data, figures
from experiments.common.figures import Array
from experiments.common.jobs import Job, Run, ended, run_to_end_or_divergence
from experiments.common.measuring import aligned_progress, tracker
from experiments.common.models import feedforward_on
from experiments.common.running import say
from experiments.common.store import Row, RunStore, csv_of, write_atomically
from experiments.common.study import Study
from experiments.common.training import Recipe, Trainer
from experiments.width import figure
from experiments.width.figure import trained
from experiments.width.tables import print_table, summary

REFERENCE = 256  # the width that has the learning rate --lr
PRESETS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {
        "dataset": "fashion-mnist",
        "widths": [128, 256, 512, 1024, 2048, 4096, 8192],
        "depth": 10,
        "lr": 0.003,
        "lr_exponents": [0.5, 1.0],
        "batch_size": 128,
        "epochs": 5,
        "probe_size": 500,
    },
}


@dataclass(frozen=True)
class Network:
    """One network of the family and its learning rate."""

    width: int
    exponent: float
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's folder, which is printed with all messages."""
        return f"width{self.width}-exponent{self.exponent:g}-seed{self.seed}"


# ---- command line


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    command_line.add(p, "--dataset", "--data-dir", "--train-size", "--test-size")
    p.add_argument(
        "--widths", type=command_line.whole(1), nargs="+", default=[32, 128, 512], metavar="N", help="units of a layer"
    )
    command_line.add(p, "--depth")
    command_line.add(p, "--lr", default=0.01, help=f"learning rate of SGD at width {REFERENCE}")
    p.add_argument(
        "--lr-exponents",
        type=command_line.real("a finite number", lambda value: True),
        nargs="+",
        default=[0.5, 1.0],
        metavar="E",
        help=f"learning rates are --lr times ({REFERENCE} / width)^E; a row of the figure for each",
    )
    command_line.add(p, "--momentum", "--weight-decay")
    command_line.add(p, "--batch-size", default=32)
    command_line.add(p, "--epochs", default=10)
    command_line.add(p, "--probe-size")
    command_line.add(p, "--measurements", default=8)
    command_line.add(p, "--precision", "--seed")


def load(args: argparse.Namespace) -> data.Dataset:
    """The data set with as many training and test samples as were asked for."""
    dataset = command_line.load(args)
    return data.test_subset(dataset, command_line.test_size(args, dataset), args.seed)


def networks(args: argparse.Namespace) -> list[Network]:
    """The networks in the order in which one process trains them: the widest first."""
    return [
        Network(n, exponent, args.lr * (REFERENCE / n) ** exponent, args.seed)
        for n in sorted(args.widths, reverse=True)
        for exponent in args.lr_exponents
    ]


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run for each network."""
    found = []
    for one in networks(args):
        recipe = command_line.recipe(args, lr=one.lr)
        finished = partial(ended, total=recipe.steps(len(dataset.train_y)))
        work = partial(train, args, one, recipe, dataset)
        found.append(Job(one.name, work, recipe, {"width": one.width}, finished))
    return found


def train(args: argparse.Namespace, one: Network, recipe: Recipe, dataset: data.Dataset, store: RunStore) -> int:
    """Train a network to its end; returns the signal that came, or 0."""
    model = feedforward_on(dataset, one.width, args.depth, one.seed)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)
    tracked = tracker(model, data.probe(dataset, args.probe_size, args.seed), args.precision)

    def measured() -> Row:
        start = feedforward_on(dataset, one.width, args.depth, one.seed)
        return aligned_progress(trainer, dataset, tracked) | moved(model, start)

    at = ah.measurement_grid(trainer.total, args.measurements)
    return run_to_end_or_divergence(store, trainer, at, measured, args.checkpoint_every)


@torch.no_grad()
def moved(model: nn.Sequential, start: nn.Sequential) -> Row:
    """The relative change of each layer's weights in columns moved/<layer>."""
    return {
        f"moved/{name}": float((layer.weight - before.weight).norm() / before.weight.norm())
        for (name, layer), before in zip(model.named_children(), start, strict=True)
        if isinstance(layer, nn.Linear)
    }


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figure and print the table of runs that ended with an alignment, beside a network of infinite width."""
    found = {
        one: run.rows
        for one in networks(args)
        if (run := runs[one.name]).finished and not math.isnan(figures.peak(run.rows[-1])[1])
    }
    if not found:
        say("nothing to draw: no run has ended with an alignment")
        return
    lines = sorted(
        (summary(one.width, one.exponent, one.lr, rows) for one, rows in found.items()),
        key=lambda line: (line["exponent"], line["width"]),
    )
    write_atomically(args.output / "width.csv", csv_of(lines))
    rows = {
        f"learning rate {args.lr:g} · ({REFERENCE} / width)$^{{{exponent:g}}}$": {
            one.width: trained(rows) for one, rows in found.items() if one.exponent == exponent
        }
        for exponent in args.lr_exponents
        if any(one.exponent == exponent for one in found)
    }
    path = args.output / "width.png"
    figure.width(rows, limit(args, dataset), title(args, dataset), path)
    print_table(lines)
    print(f"figure: {path}")


def limit(args: argparse.Namespace, dataset: data.Dataset) -> Array:
    """The alignment by layer of a network of infinite width before training, [L]."""
    x, y = data.probe(dataset, args.probe_size, args.seed)
    infinite = ah.signal_propagation.layer_kernels(ah.signal_propagation.Network("relu"), x, args.depth)
    one_hot = torch.nn.functional.one_hot(y, dataset.classes).double()
    aligned: Array = infinite.alignment(one_hot).cka.numpy()
    return aligned


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """The title says what a reader must know: data, networks and training."""
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images, alignment on {args.probe_size:,} of them\n"
        f"depth {args.depth}, batch size {args.batch_size}, {args.epochs} epochs, seed {args.seed}"
    )


STUDY = Study(
    "width",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "depth", "probe_size", "measurements", "precision"),
    presets=PRESETS,
    distinct=("--widths", "--lr-exponents"),
    load=load,
    shared=True,
    flush_denormals=True,
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
