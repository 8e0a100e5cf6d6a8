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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ahkernels as ah
from experiments.common import command_line, data, figures, jobs
from experiments.common.figures import Array
from experiments.common.measuring import aligned_progress
from experiments.common.models import feedforward
from experiments.common.running import say
from experiments.common.store import Row, RunStore, csv_of, describe_environment, locked, read_metrics, write_atomically
from experiments.common.training import Recipe, Trainer, flushed_denormals, measurement_grid
from experiments.width.figure import Trained, width

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
        """Of its folder, and in all that is printed."""
        return f"width{self.width}-exponent{self.exponent:g}-seed{self.seed}"


# ---- command line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.command_line(__doc__)
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
    p.add_argument("--output", type=Path, help="folder for the results (default: runs/width-DATASET)")
    command_line.add(p, "--overwrite", help="discard these runs in the output folder; for one process")
    command_line.add(p, "--checkpoint-every", "--threads", "--device")
    return p


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; exits with a message that names the option if a value is wrong."""
    p = parser()
    args = command_line.parse(p, PRESETS, arguments)
    command_line.require_distinct(p, args, "--widths", "--lr-exponents")
    command_line.require_data_dir(p, args)
    args.output = args.output or Path("runs") / f"width-{args.dataset}"
    return args


def networks(args: argparse.Namespace) -> list[Network]:
    """In the order in which one process trains them: the widest first."""
    return [
        Network(n, exponent, args.lr * (REFERENCE / n) ** exponent, args.seed)
        for n in sorted(args.widths, reverse=True)
        for exponent in args.lr_exponents
    ]


# ---- one run


def recipe(args: argparse.Namespace, one: Network) -> Recipe:
    """How a network is trained."""
    return command_line.recipe(args, lr=one.lr)


def job(args: argparse.Namespace, one: Network, dataset: data.Dataset) -> jobs.Job:
    """A network as the processes share it out."""
    names = ("dataset", "depth", "probe_size", "measurements", "precision")
    config = command_line.config(args, dataset, names, lr=one.lr) | {"width": one.width}
    total = args.epochs * math.ceil(len(dataset.train_y) / args.batch_size)
    return jobs.Job(
        one.name, config, lambda rows: jobs.ended(rows, total), lambda store: train(store, args, one, dataset)
    )


def initial(args: argparse.Namespace, one: Network, dataset: data.Dataset) -> nn.Sequential:
    """A network before training."""
    return feedforward(dataset.train_x.shape[1], one.width, args.depth, dataset.classes, one.seed)


@torch.no_grad()
def moved(model: nn.Sequential, start: nn.Sequential) -> Row:
    """Relative change of each layer's weights, as columns moved/<layer>."""
    return {
        f"moved/{name}": float((layer.weight - before.weight).norm() / before.weight.norm())
        for (name, layer), before in zip(model.named_children(), start, strict=True)
        if isinstance(layer, nn.Linear)
    }


def train(store: RunStore, args: argparse.Namespace, one: Network, dataset: data.Dataset) -> int:
    """Train a network to its end; returns the signal that came, or 0."""
    model = initial(args, one, dataset).to(args.device)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe(args, one))
    x, y = probe(args, dataset)

    def measured() -> Row:
        start = initial(args, one, dataset).to(args.device)
        return aligned_progress(trainer, dataset, x, y, args.precision) | moved(model, start)

    at = measurement_grid(trainer.total, args.measurements)
    return jobs.train(store, trainer, one.name, at, measured, args.checkpoint_every)


def probe(args: argparse.Namespace, dataset: data.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples that alignment is measured on."""
    chosen = data.stratified_subset(dataset.train_y, args.probe_size, args.seed).to(args.device)
    return dataset.train_x[chosen], dataset.train_y[chosen]


# ---- what came out


def trained(rows: Sequence[Row]) -> Trained:
    """A run as the figure shows it."""

    def values(prefix: str, row: int) -> Array:
        of_layers: Array = figures.table([rows], prefix)[0, row]
        return of_layers

    return Trained(values("cka", 0), values("cka", -1), values("moved", -1))


def summary(one: Network, rows: Sequence[Row]) -> Row:
    """One line of the table."""
    last, result = rows[-1], trained(rows)
    peak, cka = figures.peak(last)
    return {
        "width": one.width,
        "exponent": one.exponent,
        "lr": one.lr,
        "train_loss": last["train_loss"],
        "test_loss": last["test_loss"],
        "train_accuracy": last["train_accuracy"],
        "test_accuracy": last["test_accuracy"],
        "peak": peak,
        "cka": cka,
        "cka_before": float(np.nanmax(result.before)),
        "moved": float(np.mean(result.moved)),
    }


def print_table(lines: Sequence[Row]) -> None:
    """A line for each network."""
    names = ("width", "exponent", "lr", "train loss", "test acc.", "peak", "alignment", "before", "moved")
    print("".join(f"{name:>11}" for name in names))
    for line in lines:
        print(
            f"{line['width']:>11}{line['exponent']:>11g}{line['lr']:>11.2g}{line['train_loss']:>11.3f}"
            f"{line['test_accuracy']:>11.1%}{line['peak']:>11}{line['cka']:>11.4f}{line['cka_before']:>11.4f}"
            f"{line['moved']:>11.4f}"
        )


def draw(args: argparse.Namespace, dataset: data.Dataset) -> None:
    """Figure and table of what there is; processes take turns, so that the last one draws the latest."""
    x, y = probe(args, dataset)
    infinite = ah.signal_propagation.layer_kernels(ah.signal_propagation.Network("relu"), x, args.depth)
    limit = infinite.alignment(torch.nn.functional.one_hot(y, dataset.classes).double()).cka.numpy()
    with locked(args.output):
        found = {one: read_metrics(args.output / one.name) for one in networks(args)}
        found = {
            one: rows
            for one, rows in found.items()
            if job(args, one, dataset).finished(rows) and not math.isnan(figures.peak(rows[-1])[1])
        }
        if not found:
            say("nothing to draw: no run has ended with an alignment")
            return
        lines = sorted((summary(*item) for item in found.items()), key=lambda line: (line["exponent"], line["width"]))
        write_atomically(args.output / "width.csv", csv_of(lines))
        rows = {
            f"learning rate {args.lr:g} · ({REFERENCE} / width)$^{{{exponent:g}}}$": {
                one.width: trained(rows) for one, rows in found.items() if one.exponent == exponent
            }
            for exponent in args.lr_exponents
            if any(one.exponent == exponent for one in found)
        }
        paths = figures.files(args.output, "width")
        width(rows, limit, title(args, dataset), paths)
    print_table(lines)
    print(f"figure: {paths[-1]}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """What a reader must know about the figure: data, networks and training."""
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images, alignment on {args.probe_size:,} of them\n"
        f"depth {args.depth}, batch size {args.batch_size}, epochs: {args.epochs}, seed {args.seed}"
    )


# ---- the study


def study(args: argparse.Namespace) -> int:
    """All runs, the figure and the table; returns the exit status."""
    with flushed_denormals() as flushed:
        dataset = command_line.load(args)
        dataset = data.test_subset(dataset, command_line.test_size(args, dataset), args.seed).to(args.device)
        environment = {**describe_environment(args.device, ah.build_info()), "denormals_are_zero": flushed}
        everything = [job(args, one, dataset) for one in networks(args)]
        status = jobs.share(args.output, everything, environment, args.overwrite)
    if not status:
        draw(args, dataset)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; a mistake of the user's ends in one message and status 2, not in a traceback."""
    return command_line.finish(__file__, study, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
