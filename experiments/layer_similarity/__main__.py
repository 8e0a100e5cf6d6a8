"""Alignment of the tangent kernels of a deep network's layers with one another, before and after training.

Trains the paper's bias-free ReLU network, and compares every layer's kernel with every other's: at initialisation, at
the end, and at the end with those at initialisation, where the diagonal is 1 less the kernel velocity. Forward and
backward Grams at the end are compared likewise. Without arguments it trains on scikit-learn's digits. A run that was
interrupted goes on when the same command is given again, and ends with the same numbers.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

from torch import Tensor

import ahkernels as ah
from experiments.common import command_line, data
from experiments.common.jobs import Job, Run
from experiments.common.measuring import counted, progress
from experiments.common.models import feedforward_on
from experiments.common.running import run
from experiments.common.store import Row, RunStore
from experiments.common.study import Study
from experiments.common.training import Recipe, Trainer
from experiments.layer_similarity import figure
from experiments.layer_similarity.tables import (
    BACKWARD,
    END,
    FORWARD,
    MOVED,
    START,
    TABLES,
    array,
    matrix,
    print_table,
)


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    command_line.add(p, "--dataset", "--data-dir", "--train-size")
    command_line.add(p, "--depth", default=20)
    command_line.add(p, "--width", "--lr", "--momentum", "--weight-decay", "--batch-size", "--epochs")
    command_line.add(p, "--probe-size", help="training samples to measure on, stratified; time grows as n squared")
    command_line.add(p, "--measurements", default=12)
    command_line.add(p, "--precision")
    command_line.add(p, "--seed", help="of weights, batches and subsets")


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run."""
    recipe = command_line.recipe(args)
    return [Job(f"seed-{args.seed}", partial(train, args, recipe, dataset), recipe)]


def train(args: argparse.Namespace, recipe: Recipe, dataset: data.Dataset, store: RunStore) -> int:
    """Train to the end; returns the signal that came, or 0."""
    model = feedforward_on(dataset, args.width, args.depth, args.seed)
    probe, _ = data.probe(dataset, args.probe_size, args.seed)
    # Before the trainer goes on from a checkpoint: the kernels of the initial network follow from the seed.
    start = ah.tangent_kernels(model, probe, precision=args.precision)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)

    def measured() -> Row:
        return measure(store, trainer, dataset, probe, start, args.precision)

    return run(store, trainer, ah.measurement_grid(trainer.total, args.measurements), measured, args.checkpoint_every)


def measure(
    store: RunStore,
    trainer: Trainer,
    dataset: data.Dataset,
    probe: Tensor,
    start: dict[str, ah.TangentKernel],
    precision: str,
) -> Row:
    """Measure losses, accuracies, and every kernel's similarity with its start; at both ends also all matrices."""
    row = progress(trainer, dataset)
    kernels = ah.tangent_kernels(trainer.model, probe, precision=precision)
    layers, count = list(kernels), len(kernels)
    together = ah.similarity([*start.values(), *kernels.values()])  # one pass, of which every block is wanted
    moved = together[:count, count:]
    if trainer.iteration == 0:
        store.tables[START] = matrix(together[:count, :count], layers)
    if trainer.iteration == trainer.total:
        grams = {
            FORWARD: [kernel.forward_gram() for kernel in kernels.values()],
            BACKWARD: [kernel.backward_gram() for kernel in kernels.values()],
        }
        store.tables[END] = matrix(together[count:, count:], layers)
        store.tables[MOVED] = matrix(moved, layers)
        store.tables |= {name: matrix(ah.similarity(of), layers) for name, of in grams.items()}
    return row | {f"with_start/{layer}": value for layer, value in zip(layers, moved.diagonal().tolist(), strict=True)}


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figure and print the table."""
    (found,) = runs.values()
    matrices = {name: array(found.tables[name]) for name in TABLES}
    headings = {heading: matrices[name] for name, heading in TABLES.items()}
    axes = {TABLES[MOVED]: ("layer at the end", "layer at initialisation")}
    path = args.output / "layer_similarity.png"
    figure.layer_similarity(headings, axes, found.rows, title(args, dataset, found.rows[-1]), path)
    print_table(matrices, found.rows)
    print(f"figure: {path}")


def title(args: argparse.Namespace, dataset: data.Dataset, last: Row) -> str:
    """The title says what a reader must know: data, network, recipe and how well it did."""
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images: train accuracy {last['train_accuracy']:.1%}, "
        f"test accuracy {counted(last['test_accuracy'], len(dataset.test_y))}\n"
        f"depth {args.depth}, width {args.width}, learning rate {args.lr:g}, batch size {args.batch_size}, "
        f"{args.epochs} epochs, seed {args.seed}; measured on {args.probe_size:,} training images"
    )


STUDY = Study(
    "layer_similarity",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "depth", "width", "probe_size", "measurements", "precision"),
    tables=list(TABLES),
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
