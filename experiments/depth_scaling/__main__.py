"""Depth scaling: the layer of greatest alignment against the depth (figures 3 and 8, tables 1 to 3).

Trains the paper's network at several depths, each with its learning rate and number of epochs, until the averaged loss
is small, and fits lines to the layers where alignment peaks, on log-log axes: against depth, where theory has the slope
3/5, and against the equilibrium layer that theory has at these very depths. Variants scale all learning rates or change
the batch size. Runs are independent: start the same command several times, and the processes share them (also on one
GPU, which such small networks do not fill); whatever was interrupted goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
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
from experiments.depth_scaling import figure
from experiments.depth_scaling.networks import PRESETS, Network, Variant, networks, variant
from experiments.depth_scaling.peaks import MOMENTS, PROBES, View, averages, fits, print_tables, summary, views

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
    command_line.add(p, "--probe-size", help=command_line.TWO_PROBES)
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
    trackers = probe_trackers(model, data.probes(dataset, args.probe_size, one.seed), args.precision)
    at = ah.measurement_grid(trainer.total, args.measurements)
    measured = partial(probed_progress, trainer, dataset, trackers)
    return run_to_end_or_divergence(store, trainer, at, measured, args.checkpoint_every)


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figures and write and print the tables of the runs that have ended."""
    found = views({one: runs[one.name].rows for one in networks(args) if runs[one.name].finished}, args.variants)
    if not found:
        say("nothing to draw: no run has ended with an alignment")
        return
    averaged, fitted = averages(found), fits(found)
    for name, table in (("depth_scaling", summary(found)), ("averaged_curves", averaged), ("fits", fitted)):
        write_atomically(args.output / f"{name}.csv", csv_of(table))
    print_tables(averaged, fitted)
    for of in args.variants:
        views_of = [view for view in found if view.variant == of]
        if not views_of:
            continue
        described = title(args, dataset, of, views_of[0])
        for name, shown in grids(views_of).items():
            path = args.output / f"{name}-{of.name}.png"
            figure.depth_scaling(shown, described, path)
            print(f"figure: {path}")
        if any(view.lines for view in views_of):
            path = args.output / f"slopes-{of.name}.png"
            figure.slopes(views_of, described, path)
            print(f"figure: {path}")


def grids(found: list[View]) -> dict[str, list[list[View]]]:
    """For each probe the views to draw in a figure, a row for each moment: what to call it -> rows."""
    return {
        f"depth_scaling-{probe}": [
            [view for view in found if (view.moment, view.probe) == (moment, probe)] for moment in MOMENTS
        ]
        for probe in PROBES
    }


def title(args: argparse.Namespace, dataset: data.Dataset, of: Variant, view: View) -> str:
    """The title says what a reader must know: data, networks and how their training ended."""
    of_depths = Counter(point.network.depth for point in view.points)
    counts = ", ".join(f"{depth} ({count})" for depth, count in sorted(of_depths.items()))
    ended = "trained for all epochs"
    if args.stop_loss is not None:
        limit = sum(point.at_epoch_limit for point in view.points)
        ended = f"trained to an averaged loss of {args.stop_loss:g}"
        ended += f", or to the epoch limit ({limit} of {len(view.points)} networks)" if limit else ""
    biases = "with" if args.bias else "without"
    return (
        f"{command_line.training_images(args, dataset)}, alignment on {args.probe_size:,} of them and on as "
        f"many test images\nwidth {args.width}, {biases} biases, {of.label}, {ended}\n"
        f"depth (networks, one a seed): {counts}"
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
