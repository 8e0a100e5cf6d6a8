"""Depth scaling: the layer of greatest alignment against the depth (figures 3 and 8, tables 1 to 3).

Trains the paper's network at several depths, each with its learning rate and number of epochs, and fits lines to the
layers where alignment peaks, on log-log axes; the theory's slope is 3/5. Variants scale all learning rates or change
the batch size. Runs are independent: start the same command several times, and the processes share them (also on one
GPU, which such small networks do not fill); whatever was interrupted goes on when the command is given again.
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

import ahkernels as ah
from experiments.common import command_line, data, figures, jobs
from experiments.common.figures import Array
from experiments.common.measuring import aligned_progress
from experiments.common.models import feedforward
from experiments.common.running import say
from experiments.common.store import Row, RunStore, csv_of, describe_environment, locked, read_metrics, write_atomically
from experiments.common.training import Recipe, Trainer, flushed_denormals, measurement_grid
from experiments.depth_scaling.figure import Panel, depth_scaling
from experiments.depth_scaling.line_fit import CONFIDENCE, THEORY, Line

MOMENTS = {"end": "at the end of training", "best": "at the lowest test loss measured"}
DEPTHS = list(range(10, 101, 10))


@dataclass(frozen=True)
class Variant:
    """A factor of all learning rates, and a batch size."""

    lr_factor: float
    batch_size: int

    @property
    def label(self) -> str:
        """In figures."""
        rates = "" if self.lr_factor == 1 else f"learning rates × {self.lr_factor:g}, "
        return f"{rates}batch size {self.batch_size}"


@dataclass(frozen=True)
class Network:
    """One network and how it is trained; the learning rate is the one that it gets, variant included."""

    depth: int
    variant: Variant
    lr: float
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder, and in all that is printed."""
        return f"depth{self.depth}-lr{self.lr:g}-batch{self.variant.batch_size}-seed{self.seed}"


def variant(text: str) -> Variant:
    """An argparse type: FACTOR:BATCH."""
    factor, _, batch = text.partition(":")
    try:
        return Variant(command_line.positive(factor), command_line.whole(1)(batch))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"expected a factor above 0 of all learning rates and a batch size of at least 1, F:B, got {text!r}"
        ) from error


PAPER = {
    "depths": DEPTHS,
    "variants": [Variant(1, 128), Variant(0.25, 128), Variant(1, 512)],
    "probe_size": 500,
    "measurements": 20,
}
PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": {
        **PAPER,
        "dataset": "cifar10",
        "width": 256,
        "lrs": [0.005, 0.003, 0.003, 0.001, 0.001, 0.0007, 0.0005, 0.0005, 0.0001, 0.0001],
        "epochs": [100, 100, 150, 200, 250, 300, 300, 500, 500, 700],
    },
    "fashion-mnist": {
        **PAPER,
        "dataset": "fashion-mnist",
        "width": 100,
        "lrs": [0.003, 0.004, 0.004, 0.002, 0.001, 0.0007, 0.0003, 0.0002, 0.0001, 0.00007],
        "epochs": [100, 100, 100, 100, 100, 100, 200, 200, 300, 300],
    },
    "mnist": {
        **PAPER,
        "dataset": "mnist",
        "width": 100,
        "lrs": [0.003, 0.003, 0.003, 0.002, 0.001, 0.0007, 0.0002, 0.0001, 0.0002, 0.0001],
        "epochs": [100, 100, 100, 100, 100, 100, 200, 200, 300, 300],
    },
}


# ---- command line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = command_line.whole
    p = command_line.command_line(__doc__)
    command_line.add(p, "--dataset", "--data-dir", "--train-size")
    p.add_argument("--depths", type=whole(1), nargs="+", default=[4, 6, 10, 16, 24], metavar="L", help="linear layers")
    command_line.add(p, "--width", default=64)
    p.add_argument(
        "--lrs",
        type=command_line.positive,
        nargs="+",
        default=[0.01, 0.01, 0.01, 0.005, 0.003],
        metavar="LR",
        help="learning rates of SGD, one for each depth or one for all",
    )
    p.add_argument(
        "--epochs",
        type=whole(1),
        nargs="+",
        default=[20],
        metavar="E",
        help="passes over the training set, one number for each depth or one for all",
    )
    p.add_argument(
        "--epoch-fraction",
        type=command_line.real("a number in (0, 1]", lambda value: 0 < value <= 1),
        default=1.0,
        metavar="F",
        help="train for this part of the epochs, where time is short",
    )
    p.add_argument(
        "--variants",
        type=variant,
        nargs="+",
        default=[Variant(1, 32)],
        metavar="F:B",
        help="factors of all learning rates with batch sizes, a column of the figure for each (default: 1:32)",
    )
    command_line.add(p, "--momentum", "--weight-decay", "--probe-size")
    command_line.add(p, "--measurements", default=10)
    command_line.add(p, "--precision")
    p.add_argument("--seeds", type=command_line.seed, nargs="+", default=[0], metavar="S", help="one run for each")
    p.add_argument("--output", type=Path, help="folder for the results (default: runs/depth_scaling-DATASET)")
    command_line.add(p, "--overwrite", help="discard these runs in the output folder; for one process")
    command_line.add(p, "--checkpoint-every", default=2000)
    command_line.add(p, "--threads", "--device")
    return p


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; exits with a message that names the option if a value is wrong."""
    p = parser()
    args = command_line.parse(p, PRESETS, arguments)
    command_line.require_distinct(p, args, "--depths", "--variants", "--seeds")
    for option in ("lrs", "epochs"):
        count = len(getattr(args, option))
        if count not in (1, len(args.depths)):
            p.error(f"argument --{option}: expected 1 number or {len(args.depths)}, one for each depth, got {count}")
    command_line.require_data_dir(p, args)
    args.output = args.output or Path("runs") / f"depth_scaling-{args.dataset}"
    return args


def networks(args: argparse.Namespace) -> list[Network]:
    """In the order in which one process trains them: variant by variant, the longest run first."""

    def of_each(values: list[Any]) -> list[Any]:
        return values if len(values) > 1 else values * len(args.depths)

    found = [
        Network(depth, of, lr * of.lr_factor, max(1, round(epochs * args.epoch_fraction)), seed)
        for of in args.variants
        for depth, lr, epochs in zip(args.depths, of_each(args.lrs), of_each(args.epochs), strict=True)
        for seed in args.seeds
    ]
    return sorted(found, key=lambda one: (args.variants.index(one.variant), -one.depth * one.epochs))


# ---- one run


def recipe(args: argparse.Namespace, one: Network) -> Recipe:
    """How a network is trained."""
    return Recipe(
        lr=one.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        batch_size=one.variant.batch_size,
        epochs=one.epochs,
        seed=one.seed,
    )


def job(args: argparse.Namespace, one: Network, dataset: data.Dataset) -> jobs.Job:
    """A network as the processes share it out."""
    names = ("dataset", "width", "probe_size", "measurements", "precision")
    how = recipe(args, one)
    config = {name: getattr(args, name) for name in names} | {"depth": one.depth} | vars(how) | dataset.describe()
    total = one.epochs * math.ceil(len(dataset.train_y) / how.batch_size)
    return jobs.Job(
        one.name, config, lambda rows: jobs.ended(rows, total), lambda store: train(store, args, one, dataset)
    )


def train(store: RunStore, args: argparse.Namespace, one: Network, dataset: data.Dataset) -> int:
    """Train a network to its end; returns the signal that came, or 0."""
    model = feedforward(dataset.train_x.shape[1], args.width, one.depth, dataset.classes, one.seed).to(args.device)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe(args, one))
    probe = data.stratified_subset(dataset.train_y, args.probe_size, one.seed).to(args.device)
    x, y = dataset.train_x[probe], dataset.train_y[probe]

    at = measurement_grid(trainer.total, args.measurements)
    return jobs.train(
        store,
        trainer,
        one.name,
        at,
        lambda: aligned_progress(trainer, dataset, x, y, args.precision),
        args.checkpoint_every,
    )


# ---- what came out


def chosen(rows: Sequence[Row], moment: str) -> Row | None:
    """The row of a moment; None where the run diverged, nothing is known of it yet, or no layer has an alignment."""
    if not rows or any(math.isnan(row["train_loss"]) for row in rows):
        return None
    row = rows[-1] if moment == "end" else min(rows, key=lambda row: row["test_loss"])
    return None if math.isnan(figures.peak(row)[1]) else row


def alignment(row: Row) -> Array:
    """By layer, [L]."""
    values: Array = figures.table([[row]], "cka")[0, 0]
    return values


def summary(args: argparse.Namespace, found: dict[Network, list[Row]]) -> list[dict[str, Any]]:
    """One line for each network and moment."""
    lines = []
    for one, rows in found.items():
        for moment in MOMENTS:
            row = chosen(rows, moment)
            if row is None:
                continue
            peak, cka = figures.peak(row)
            lines.append(
                {
                    "lr_factor": one.variant.lr_factor,
                    "batch_size": one.variant.batch_size,
                    "depth": one.depth,
                    "seed": one.seed,
                    "lr": one.lr,
                    "moment": moment,
                    "epoch": row["epoch"],
                    "train_loss": row["train_loss"],
                    "test_loss": row["test_loss"],
                    "train_accuracy": row["train_accuracy"],
                    "test_accuracy": row["test_accuracy"],
                    "peak": peak,
                    "cka": cka,
                }
            )
    return sorted(lines, key=lambda line: (-line["lr_factor"], line["batch_size"], line["depth"], line["seed"]))


def panel(args: argparse.Namespace, found: dict[Network, list[Row]], of: Variant, moment: str) -> Panel | None:
    """One picture; alignment is the mean over seeds, peaks are those of each seed. None where there is nothing yet."""
    rows = {one: row for one, rows in found.items() if one.variant == of and (row := chosen(rows, moment))}
    if not rows:
        return None
    columns = {
        depth: np.mean([alignment(row) for one, row in rows.items() if one.depth == depth], axis=0)
        for depth in sorted({one.depth for one in rows})
    }
    ordered = sorted(rows, key=lambda one: (one.depth, one.seed))
    peaks = Line([one.depth for one in ordered], [figures.peak(rows[one])[0] for one in ordered])
    return Panel(f"{of.label}\n{MOMENTS[moment]}", columns, peaks)


def fits(panels: dict[tuple[Variant, str], Panel]) -> list[dict[str, Any]]:
    """One line for each picture that has depths enough."""
    lines = []
    for (of, moment), one in panels.items():
        if not one.peaks.fitted:
            continue
        (low, high), best = one.peaks.interval, one.peaks.best
        lines.append(
            {
                "lr_factor": of.lr_factor,
                "batch_size": of.batch_size,
                "moment": moment,
                "networks": len(one.peaks.depths),
                "slope": best.exponent,
                "low": low,
                "high": high,
                "constant": best.constant,
                "residual": best.residual,
                "constant_at_3/5": one.peaks.theory_constant,
                "residual_at_3/5": one.peaks.theory_residual,
            }
        )
    return lines


def print_tables(lines: Sequence[dict[str, Any]], fitted: Sequence[dict[str, Any]]) -> None:
    """Networks, then fits."""
    print("networks, at the end of training and at the lowest test loss measured:")
    columns = "".join(f"{name:>11}" for name in ("depth", "seed", "epochs", "train acc.", "test acc.", "peak"))
    print(f"  {'variant':<10}{columns}  alignment")
    for line in lines:
        of = f"{line['lr_factor']:g}:{line['batch_size']}"
        print(
            f"  {of:<10}{line['depth']:>11}{line['seed']:>11}{line['epoch']:>11.3g}{line['train_accuracy']:>11.1%}"
            f"{line['test_accuracy']:>11.1%}{line['peak']:>11}  {line['cka']:.4f}  {line['moment']}"
        )
    for line in fitted:
        print(
            f"{line['lr_factor']:g}:{line['batch_size']}, {MOMENTS[line['moment']]}: slope {line['slope']:.2f}, "
            f"{CONFIDENCE:.0%} interval {line['low']:.2f} ... {line['high']:.2f} (theory {THEORY:g})"
        )


# ---- the study


def draw(args: argparse.Namespace, dataset: data.Dataset) -> None:
    """Figure and tables of what there is; processes take turns, so that the last one draws the latest."""
    with locked(args.output):
        found = {one: read_metrics(args.output / one.name) for one in networks(args)}
        found = {one: rows for one, rows in found.items() if job(args, one, dataset).finished(rows)}
        panels = {
            (of, moment): one
            for moment in MOMENTS
            for of in args.variants
            if (one := panel(args, found, of, moment)) is not None
        }
        if not panels:
            say("nothing to draw: no run has ended with an alignment")
            return
        lines, fitted = summary(args, found), fits(panels)
        write_atomically(args.output / "depth_scaling.csv", csv_of(lines))
        write_atomically(args.output / "fits.csv", csv_of(fitted))
        shown = [of for of in args.variants if all((of, moment) in panels for moment in MOMENTS)]
        paths = figures.files(args.output, "depth_scaling")
        grid = [[panels[of, moment] for of in shown] for moment in MOMENTS]
        if len(shown) == 1:
            grid = [[row[0] for row in grid]]  # side by side
        depth_scaling(grid, title(args, dataset), paths)
    print_tables(lines, fitted)
    print(f"figure: {paths[-1]}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """What a reader must know about the figure: data and networks."""
    seeds = f"{len(args.seeds)} seeds" if len(args.seeds) > 1 else f"seed {args.seeds[0]}"
    epochs = sorted({one.epochs for one in networks(args)})
    span = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images, alignment on {args.probe_size:,} of them\n"
        f"width {args.width}, {span} epochs, {seeds}"
    )


def study(args: argparse.Namespace) -> int:
    """All runs, the figure and the tables; returns the exit status."""
    with flushed_denormals() as flushed:
        dataset = command_line.load(args, subset_seed=0).to(args.device)  # the same for every seed
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
