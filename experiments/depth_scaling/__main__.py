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
from functools import partial
from typing import Any

import numpy as np

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
        """The text for figures."""
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
        """The name of the run's folder, which is printed with all messages."""
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


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    whole = command_line.whole
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


def check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where there is not one learning rate, or number of epochs, for each depth or for all."""
    for option in ("lrs", "epochs"):
        count = len(getattr(args, option))
        if count not in (1, len(args.depths)):
            p.error(f"argument --{option}: expected 1 number or {len(args.depths)}, one for each depth, got {count}")


def networks(args: argparse.Namespace) -> list[Network]:
    """The networks in the order in which one process trains them: variant by variant, the longest run first."""

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


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run for each network."""
    return [job(args, one, dataset) for one in networks(args)]


def job(args: argparse.Namespace, one: Network, dataset: data.Dataset) -> Job:
    """The run of one network."""
    recipe = Recipe(
        lr=one.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        batch_size=one.variant.batch_size,
        epochs=one.epochs,
        seed=one.seed,
    )
    total = recipe.steps(len(dataset.train_y))
    return Job(
        one.name,
        partial(train, args, one, recipe, dataset),
        recipe,
        {"depth": one.depth},
        finished=lambda rows: ended(rows, total),
    )


def train(args: argparse.Namespace, one: Network, recipe: Recipe, dataset: data.Dataset, store: RunStore) -> int:
    """Train a network to its end; returns the signal that came, or 0."""
    model = feedforward_on(dataset, args.width, one.depth, one.seed)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)
    tracked = tracker(model, data.probe(dataset, args.probe_size, one.seed), args.precision)
    at = ah.measurement_grid(trainer.total, args.measurements)
    measured = partial(aligned_progress, trainer, dataset, tracked)
    return run_to_end_or_divergence(store, trainer, at, measured, args.checkpoint_every)


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figure and write and print the tables of the runs that have ended."""
    found = {one: runs[one.name].rows for one in networks(args) if runs[one.name].finished}
    panels = {
        (of, moment): one for moment in MOMENTS for of in args.variants if (one := panel(found, of, moment)) is not None
    }
    if not panels:
        say("nothing to draw: no run has ended with an alignment")
        return
    lines, fitted = summary(found), fits(panels)
    write_atomically(args.output / "depth_scaling.csv", csv_of(lines))
    write_atomically(args.output / "fits.csv", csv_of(fitted))
    shown = [of for of in args.variants if all((of, moment) in panels for moment in MOMENTS)]
    grid = [[panels[of, moment] for of in shown] for moment in MOMENTS]
    if len(shown) == 1:
        grid = [[row[0] for row in grid]]  # side by side
    path = args.output / "depth_scaling.png"
    depth_scaling(grid, title(args, dataset), path)
    print_tables(lines, fitted)
    print(f"figure: {path}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """The title says what a reader must know: data and networks."""
    seeds = f"{len(args.seeds)} seeds" if len(args.seeds) > 1 else f"seed {args.seeds[0]}"
    epochs = sorted({one.epochs for one in networks(args)})
    span = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images, alignment on {args.probe_size:,} of them\n"
        f"width {args.width}, {span} epochs, {seeds}"
    )


def chosen(rows: Sequence[Row], moment: str) -> Row | None:
    """The row of a moment; None if the run diverged, has no rows yet, or no layer has an alignment."""
    if not rows or any(math.isnan(row["train_loss"]) for row in rows):
        return None
    row = rows[-1] if moment == "end" else min(rows, key=lambda row: row["test_loss"])
    return None if math.isnan(figures.peak(row)[1]) else row


def alignment(row: Row) -> Array:
    """The alignment by layer, [L]."""
    values: Array = figures.table([[row]], "cka")[0, 0]
    return values


def summary(found: dict[Network, list[Row]]) -> list[dict[str, Any]]:
    """Make one line for each network and moment."""
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


def panel(found: dict[Network, list[Row]], of: Variant, moment: str) -> Panel | None:
    """One picture with the mean alignment over seeds and the peaks of each seed; None where there is nothing yet."""
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
    """Make one line for each picture with enough depths."""
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
    """Print a line for each network and moment, then the fits."""
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


STUDY = Study(
    "depth_scaling",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "width", "probe_size", "measurements", "precision"),
    presets=PRESETS,
    distinct=("--depths", "--variants", "--seeds"),
    check=check,
    load=partial(command_line.load, subset_seed=0),  # the same samples for every seed
    shared=True,
    flush_denormals=True,
    checkpoint_every=2000,
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
