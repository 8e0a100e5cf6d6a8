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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import ahkernels as ah
from experiments.common import command_line, data, figures
from experiments.common.measuring import alignments, progress
from experiments.common.models import feedforward
from experiments.common.running import opened, run, stopped
from experiments.common.store import Row, RunStore, describe_environment
from experiments.common.training import DivergedError, Recipe, Trainer, measurement_grid

RECIPE = ("lr", "momentum", "weight_decay", "batch_size", "epochs")  # the options that say how to train
PAPER = {
    "depth": 10,
    "width": 256,
    "lr": 0.003,
    "batch_size": 128,
    "epochs": 100,
    "probe_size": 1000,
    "measurements": 40,
}
PRESETS: dict[str, dict[str, Any]] = {
    name: {**PAPER, "dataset": name} for name in ("mnist", "fashion-mnist", "kmnist", "cifar10")
}
LOSSES = ("iteration", "epoch", "train_loss", "test_loss", "test_accuracy")


# ---- command line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.command_line(__doc__)
    command_line.add(p, "--dataset", "--data-dir", "--depth", "--width")
    command_line.add(p, "--lr", "--momentum", "--weight-decay", "--batch-size", "--epochs")
    command_line.add(p, "--probe-size", "--measurements", "--precision")
    p.add_argument(
        "--seeds", type=command_line.seed, nargs="+", default=[0], metavar="S", help="one run for each, drawn together"
    )
    p.add_argument("--output", type=Path, help="folder for the results (default: runs/alignment_hierarchy-DATASET)")
    command_line.add(p, "--overwrite", help="discard runs of these seeds in the output folder")
    command_line.add(p, "--checkpoint-every", "--threads", "--device")
    return p


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; exits with a message that names the option if a value is wrong."""
    p = parser()
    args = command_line.parse(p, PRESETS, arguments)
    command_line.require_distinct(p, args, "--seeds")
    command_line.require_data_dir(p, args)
    args.output = args.output or Path("runs") / f"alignment_hierarchy-{args.dataset}"
    return args


# ---- one measurement


def measure(trainer: Trainer, dataset: data.Dataset, probe_x: Tensor, probe_y: Tensor, precision: str) -> Row:
    """Losses, test accuracy and every layer's alignment; changes nothing, draws no random number."""
    losses = progress(trainer, dataset)
    with warnings.catch_warnings():
        # Per output, nothing is left of the last layer's backward Gram: its alignment is nan.
        warnings.filterwarnings("ignore", r".*\(backward Gram\)", ah.DegenerateKernelWarning)
        reports = ah.layerwise_alignment(
            trainer.model,
            probe_x,
            probe_y,
            centering=("per_output", "global"),
            statistics=("forward_cka", "backward_cka"),
            precision=precision,
        )
    row = {name: losses[name] for name in LOSSES}
    for centering, report in reports.items():
        row |= {f"cka/{centering}/{layer}": value for layer, value in report.items()}
    grams = alignments(reports["per_output"])
    return row | {name: value for name, value in grams.items() if not name.startswith("cka/")}


# ---- the study


def print_table(runs: list[list[Row]]) -> None:
    """Alignment by layer with both centerings at the moments that the figure shows; means over seeds."""
    layers = figures.layer_names(runs[0], figures.PER_OUTPUT)

    def values(prefix: str, measurement: int) -> figures.Array:
        return figures.table(runs, prefix, figures.PER_OUTPUT)[:, measurement]

    columns = {
        "per output": values(figures.PER_OUTPUT, -1),
        "global": values(figures.GLOBAL, -1),
        "forward only": values("forward_cka", -1),
        "backward only": values("backward_cka", -1),
    }
    moments = figures.moments(runs)
    for measurement in list(moments.values())[1:]:
        iteration = int(runs[0][measurement]["iteration"])
        columns |= {
            f"per output @{iteration}": values(figures.PER_OUTPUT, measurement),
            f"global @{iteration}": values(figures.GLOBAL, measurement),
        }
    means = {title: figures.mean_over_runs(value) for title, value in columns.items()}
    width = max(map(len, ["layer", *layers]))
    spread = len(runs) > 1
    print(f"alignment with the labels after {int(runs[0][-1]['iteration'])} iterations", end="")
    print(f", mean of {len(runs)} seeds (* greatest of its column):" if spread else " (* greatest of its column):")
    header = f"{'layer':<{width}}" + "".join(f"  {title:>14}" for title in columns)
    print(header + ("  per output: least ... greatest" if spread else ""))
    peaks = {title: None if np.isnan(mean).all() else int(np.nanargmax(mean)) for title, mean in means.items()}
    for index, layer in enumerate(layers):
        line = f"{layer:<{width}}"
        for title, mean in means.items():
            line += f"  {'*' if index == peaks[title] else ''}{mean[index]:.4f}".rjust(max(14, len(title)) + 2)
        if spread:
            column = columns["per output"][:, index]
            line += f"  {np.fmin.reduce(column):.4f} ... {np.fmax.reduce(column):.4f}"
        print(line)
    named = (f"{name}: iteration {int(runs[0][measurement]['iteration'])}" for name, measurement in moments.items())
    print("; ".join(named))
    final = [rows[-1] for rows in runs]
    print(
        f"test accuracy {np.mean([row['test_accuracy'] for row in final]):.1%}, "
        f"test loss {np.mean([row['test_loss'] for row in final]):.3f}, "
        f"train loss {np.mean([row['train_loss'] for row in final]):.3f}"
    )


def title(args: argparse.Namespace, runs: list[list[Row]]) -> str:
    """What a reader must know about a figure: data, network, recipe and how well it did."""
    accuracy, loss = (np.mean([rows[-1][name] for rows in runs]) for name in ("test_accuracy", "test_loss"))
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {args.seeds[0]}"
    return (
        f"{args.dataset}, each output centered over the samples: test accuracy {accuracy:.1%}, test loss {loss:.2f}\n"
        f"depth {args.depth}, width {args.width}, learning rate {args.lr:g}, "
        f"batch size {args.batch_size}, {seeds}"
    )


def study(args: argparse.Namespace) -> int:
    """All seeds, the figure and the table; returns the exit status."""
    dataset = data.load(args.dataset, args.data_dir)
    command_line.require_samples(args, dataset, "--probe-size", args.probe_size)
    environment = describe_environment(args.device, ah.build_info())
    configs = {f"seed-{seed}": config(args, seed, dataset) for seed in args.seeds}
    with opened(args.output, configs, environment, args.overwrite) as stores:
        dataset = dataset.to(args.device)
        for seed, store in zip(args.seeds, stores.values(), strict=True):
            if not store.finished and (number := train(store, seed, args, dataset)):
                return stopped(store, f"seed {seed}", number)
        runs = [store.rows for store in stores.values()]
    paths = figures.files(args.output, "alignment_hierarchy")
    figures.alignment_hierarchy(runs, title(args, runs), paths)
    print_table(runs)
    print(f"figure: {paths[-1]}")
    return 0


def config(args: argparse.Namespace, seed: int, dataset: data.Dataset) -> dict[str, Any]:
    """All that determines a run's numbers, up to the machine it runs on."""
    names = ("dataset", "depth", "width", "probe_size", "measurements", "precision")
    return {
        **{name: getattr(args, name) for name in (*names, *RECIPE)},
        "seed": seed,
        **dataset.describe(),
    }


def recipe(args: argparse.Namespace, seed: int) -> Recipe:
    """How one seed is trained."""
    return Recipe(**{name: getattr(args, name) for name in RECIPE}, seed=seed)


def train(store: RunStore, seed: int, args: argparse.Namespace, dataset: data.Dataset) -> int:
    """One seed; returns the signal that came, or 0."""
    model = feedforward(dataset.train_x.shape[1], args.width, args.depth, dataset.classes, seed).to(args.device)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe(args, seed))
    probe = data.stratified_subset(dataset.train_y, args.probe_size, seed).to(args.device)
    x, y = dataset.train_x[probe], dataset.train_y[probe]
    try:
        return run(
            store,
            trainer,
            f"seed {seed}",
            measurement_grid(trainer.total, args.measurements),
            lambda: measure(trainer, dataset, x, y, args.precision),
            args.checkpoint_every,
        )
    except DivergedError as error:
        raise DivergedError(f"seed {seed}: {error}; choose a smaller --lr and another --output") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; a mistake of the user's ends in one message and status 2, not in a traceback."""
    return command_line.finish(__file__, study, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
