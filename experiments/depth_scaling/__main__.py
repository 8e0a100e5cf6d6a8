"""Depth scaling: the layer of greatest alignment against the depth (figures 3 and 8, tables 1 to 3).

Trains the paper's network at several depths, each with its learning rate and number of epochs, and fits lines to the
layers where alignment peaks, on log-log axes; the theory's slope is 3/5. Variants scale all learning rates or change
the batch size. Runs are independent: start the same command several times, and the processes share them (also on one
GPU, which such small networks do not fill); whatever was interrupted goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import ahkernels as ah
from experiments.common import command_line, data
from experiments.common.jobs import Job, Run, ended, run_to_end_or_divergence
from experiments.common.measuring import probe_trackers, probed_progress
from experiments.common.models import feedforward_on
from experiments.common.running import say
from experiments.common.store import RunStore, csv_of, write_atomically
from experiments.common.study import Study
from experiments.common.training import Recipe, Trainer
from experiments.depth_scaling.figure import depth_scaling
from experiments.depth_scaling.networks import PRESETS, Network, Variant, networks, variant
from experiments.depth_scaling.peaks import MOMENTS, fits, panel, print_tables, summary

# ---- command line


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    whole = command_line.whole
    command_line.add(p, "--dataset", "--data-dir", "--train-size")
    p.add_argument("--depths", type=whole(1), nargs="+", default=[4, 6, 10, 16, 24], metavar="L", help="linear layers")
    command_line.add(p, "--width", default=64)
    command_line.add(p, "--bias", "--initialisation")
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
        help="factors of all learning rates with batch sizes, a column of the figure for each",
    )
    command_line.add(p, "--momentum", "--weight-decay", "--stop-loss", "--augment")
    command_line.add(
        p,
        "--probe-size",
        help="training samples and as many test samples to measure on, stratified, drawn per seed; "
        "time grows as n squared",
    )
    command_line.add(p, "--measurements", default=10)
    command_line.add(p, "--precision")
    p.add_argument("--seeds", type=command_line.seed, nargs="+", default=[0], metavar="S", help="one run for each")
    p.add_argument(
        "--seed-counts",
        type=whole(1),
        nargs="+",
        metavar="K",
        help="take only the first K seeds, one number for each depth or one for all (default: all)",
    )


def check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where an option has neither one number for each depth nor one for all."""
    for option in ("lrs", "epochs", "seed-counts"):
        values = getattr(args, option.replace("-", "_"))
        count = 1 if values is None else len(values)
        if count not in (1, len(args.depths)):
            p.error(f"argument --{option}: expected 1 number or {len(args.depths)}, one for each depth, got {count}")
    command_line.require_colour(p, args)


def load(args: argparse.Namespace) -> data.Dataset:
    """The data set, with the same training samples for every seed, and samples enough for the probes."""
    dataset = command_line.load(args, subset_seed=0)
    command_line.require_probes(args, dataset)
    return dataset


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run for each network."""
    found = []
    for one in networks(args):
        recipe = command_line.recipe(
            args, lr=one.lr, batch_size=one.variant.batch_size, epochs=one.epochs, seed=one.seed
        )
        finished = partial(ended, total=recipe.steps(len(dataset.train_y)))
        work = partial(train, args, one, recipe, dataset)
        found.append(Job(one.name, work, recipe, {"depth": one.depth}, finished))
    return found


def train(args: argparse.Namespace, one: Network, recipe: Recipe, dataset: data.Dataset, store: RunStore) -> int:
    """Train a network to its end; returns the signal that came, or 0."""
    model = feedforward_on(dataset, args.width, one.depth, one.seed, bias=args.bias, initialisation=args.initialisation)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)
    trackers = probe_trackers(model, dataset, args.probe_size, one.seed, args.precision)
    at = ah.measurement_grid(trainer.total, args.measurements)
    measured = partial(probed_progress, trainer, dataset, trackers)
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


STUDY = Study(
    "depth_scaling",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "width", "bias", "initialisation", "probe_size", "measurements", "precision"),
    presets=PRESETS,
    distinct=("--depths", "--variants", "--seeds"),
    check=check,
    load=load,
    shared=True,
    flush_denormals=True,
    checkpoint_every=2000,
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
