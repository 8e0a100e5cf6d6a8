"""Alignment of every layer on few and on many samples, as it is and debiased, with labels and with shuffled labels.

Trains a ReLU network. Before and after training it measures every layer on random subsets of the training images, and
the same with labels that are shuffled within the subset. The subsets of one draw contain one another. Without arguments
it runs on scikit-learn's digits. A run that was interrupted, also between two subsets, goes on when the same command is
given again, and ends with the same numbers.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import numpy as np
import torch

import ahkernels as ah
from experiments.cka_bias import figure
from experiments.cka_bias.tables import TABLE, print_table
from experiments.common import command_line, data
from experiments.common.jobs import Job, Run
from experiments.common.measuring import counted, progress
from experiments.common.models import feedforward_on
from experiments.common.running import run, say
from experiments.common.store import Row, RunStore
from experiments.common.study import Study
from experiments.common.training import Recipe, Trainer

LEAST = 4  # samples that a debiased alignment takes


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    command_line.add(p, "--dataset", "--data-dir", "--train-size")
    command_line.add(p, "--depth", default=6)
    command_line.add(p, "--width", "--lr", "--momentum", "--weight-decay", "--batch-size")
    command_line.add(p, "--epochs", default=30)
    p.add_argument(
        "--sizes",
        type=command_line.whole(LEAST),
        nargs="+",
        default=[50, 100, 200, 500, 1000],
        metavar="n",
        help="training samples in a subset; time grows as n squared",
    )
    p.add_argument("--subsets", type=command_line.whole(2), default=20, metavar="S", help="subsets of each size")
    p.add_argument(
        "--outputs",
        choices=("trace", "all"),
        default="trace",
        help="kernels over samples, or over samples and outputs with each output centered",
    )
    command_line.add(p, "--precision", "--seed")


def load(args: argparse.Namespace) -> data.Dataset:
    """The data set, with as many training samples as the largest subset."""
    dataset = data.load(args.dataset, args.data_dir)
    command_line.require_samples(args, dataset, "--train-size", args.train_size)
    if args.train_size is not None:
        dataset = data.training_subset(dataset, args.train_size, args.seed)
    command_line.require_samples(args, dataset, "--sizes", max(args.sizes))
    return dataset


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run."""
    recipe = command_line.recipe(args)
    return [Job(f"seed-{args.seed}", partial(train, args, recipe, dataset), recipe)]


def train(args: argparse.Namespace, recipe: Recipe, dataset: data.Dataset, store: RunStore) -> int:
    """Measure, train to the end and measure again; returns the signal that came, or 0."""
    model = feedforward_on(dataset, args.width, args.depth, args.seed)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)

    def measured() -> Row:
        found = store.tables.setdefault(TABLE, [])
        known = {(row["iteration"], row["samples"], row["subset"]) for row in found}
        for size in args.sizes:
            for subset in range(args.subsets):
                if (trainer.iteration, size, subset) not in known:
                    found.extend(measure(trainer, dataset, size, subset, args))
                    store.save(trainer.state())
            say(f"{store.name}: iteration {trainer.iteration}, {args.subsets} subsets of {size:,} images")
        return progress(trainer, dataset)

    return run(store, trainer, [0, trainer.total], measured, args.checkpoint_every)


def measure(trainer: Trainer, dataset: data.Dataset, size: int, subset: int, args: argparse.Namespace) -> list[Row]:
    """Measure all layers on one subset, with its labels and with the same ones shuffled."""
    x, y = dataset.train_x, dataset.train_y
    of_subset, of_labels = (np.random.default_rng([args.seed, subset, stream]) for stream in (0, 1))
    chosen = torch.from_numpy(of_subset.permutation(len(y))[:size]).to(y.device)
    orders = {0: np.arange(size), 1: of_labels.permutation(size)}
    rows = []
    for shuffled, order in orders.items():
        labels = y[chosen][torch.from_numpy(order).to(y.device)]
        report = ah.layerwise_alignment(
            trainer.model,
            x[chosen],
            labels,
            outputs=args.outputs,
            centering="per_output",
            statistics=["debiased_cka"],
            precision=args.precision,
        )
        where = {"iteration": trainer.iteration, "samples": size, "subset": subset, "shuffled": shuffled}
        rows.append(where | report.row())
    return rows


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figure and print the table."""
    (found,) = runs.values()
    alignments, path = found.tables[TABLE], args.output / "cka_bias.png"
    figure.cka_bias(alignments, title(args, dataset, found.rows[-1]), path)
    print_table(alignments)
    print(f"figure: {path}")


def title(args: argparse.Namespace, dataset: data.Dataset, last: Row) -> str:
    """The title says what a reader must know: data, network, recipe and how well it did."""
    kernels = "kernels over samples (trace)" if args.outputs == "trace" else "all outputs, each centered"
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images: train accuracy {last['train_accuracy']:.1%}, "
        f"test accuracy {counted(last['test_accuracy'], len(dataset.test_y))}\n"
        f"depth {args.depth}, width {args.width}, learning rate {args.lr:g}, batch size {args.batch_size}, "
        f"{args.epochs} epochs, seed {args.seed}\n"
        f"{kernels}; mean ± standard deviation over {args.subsets} random subsets"
    )


STUDY = Study(
    "cka_bias",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "depth", "width", "sizes", "subsets", "outputs", "precision"),
    distinct=["--sizes"],
    load=load,
    tables=[TABLE],
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
