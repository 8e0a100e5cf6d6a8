"""Alignment of every layer on the whole training set, beside that on the small probes that are usual.

Trains the paper's bias-free ReLU network. Then it measures alignments on several probes of a few training images
exactly, and on all training images from products with the kernels (of 600,000 rows at 60,000 images), with error bars;
some layers also exactly. Without arguments it runs on scikit-learn's digits. A run that was interrupted, also between
two layers, goes on when the same command is given again, and ends with the same alignments.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial

import ahkernels as ah
from experiments.common import command_line, data
from experiments.common.jobs import Job, Run
from experiments.common.measuring import counted, progress
from experiments.common.models import feedforward_on
from experiments.common.running import run, say
from experiments.common.store import Row, RunStore
from experiments.common.study import Study
from experiments.common.training import Recipe, Trainer
from experiments.whole_training_set import figure
from experiments.whole_training_set.tables import print_table

TABLE = "alignments"


@dataclass(frozen=True)
class Alignment:
    """One alignment to measure: of a layer, on some training images."""

    layer: int  # counted from 1, next to the input
    samples: int
    probe: int  # seed of the subset, and 0 for all
    products: int  # 0 for the exact alignment

    @property
    def key(self) -> tuple[int, int, int, int]:
        """The columns that tell it from others in the table."""
        return self.layer, self.samples, self.probe, self.products


# ---- command line


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    command_line.add(p, "--dataset", "--data-dir", "--train-size", "--depth", "--width", "--lr", "--momentum")
    command_line.add(p, "--weight-decay", "--batch-size", "--epochs")
    command_line.add(p, "--probe-size", help="training samples in a probe, stratified")
    p.add_argument("--probes", type=command_line.whole(1), default=5, metavar="P", help="probes, drawn independently")
    p.add_argument(
        "--products",
        type=command_line.whole(6),
        default=90,
        metavar="K",
        help="products with each kernel that its alignment on the whole set is estimated from",
    )
    p.add_argument(
        "--exact-layers",
        type=command_line.whole(1),
        nargs="*",
        default=[],
        metavar="l",
        help="layers to measure exactly on the whole set, too; time grows as its square",
    )
    command_line.add(p, "--precision", "--seed")


def check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where a layer is to be measured that the network does not have."""
    if args.exact_layers and max(args.exact_layers) > args.depth:
        p.error(
            f"argument --exact-layers: expected layers from 1 to {args.depth}, --depth, got {max(args.exact_layers)}"
        )


def load(args: argparse.Namespace) -> data.Dataset:
    """The data set, with more training samples than a probe has."""
    dataset = command_line.load(args)
    samples = len(dataset.train_y)
    if args.probe_size == samples:
        raise command_line.UsageError(
            f"argument --probe-size: expected less than {samples}, the training samples, got {args.probe_size}"
        )
    return dataset


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run."""
    recipe = command_line.recipe(args)
    return [Job(f"seed-{args.seed}", partial(train, args, recipe, dataset), recipe)]


def train(args: argparse.Namespace, recipe: Recipe, dataset: data.Dataset, store: RunStore) -> int:
    """Train to the end and measure; returns the signal that came, or 0."""
    model = feedforward_on(dataset, args.width, args.depth, args.seed)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)

    def measured() -> Row:
        found = store.tables.setdefault(TABLE, [])
        known = {tuple(int(row[name]) for name in ("layer", "samples", "probe", "products")) for row in found}
        for one in wanted(args, len(dataset.train_y)):
            if one.key in known:
                continue
            found.append(measure(trainer, dataset, one, args.precision))
            store.save(trainer.state())
            how = f"from {one.products} products" if one.products else "exactly"
            cka, seconds = found[-1]["cka"], found[-1]["seconds"]
            say(f"{store.name}: layer {one.layer} on {one.samples:,} images {how}: {cka:.4f}, {seconds:.1f} s")
        return progress(trainer, dataset)

    return run(store, trainer, [trainer.total], measured, args.checkpoint_every)


def wanted(args: argparse.Namespace, samples: int) -> list[Alignment]:
    """The alignments to measure of the trained network, in this order."""
    layers = range(1, args.depth + 1)
    probes = [Alignment(layer, args.probe_size, probe, 0) for probe in range(args.probes) for layer in layers]
    estimated = [Alignment(layer, samples, 0, args.products) for layer in layers]
    return [*probes, *estimated, *(Alignment(layer, samples, 0, 0) for layer in args.exact_layers)]


def measure(trainer: Trainer, dataset: data.Dataset, one: Alignment, precision: str) -> Row:
    """Measure one alignment, with its standard error (0 where it is exact) and the seconds that it took."""
    x, y = dataset.train_x, dataset.train_y
    if one.samples < len(y):
        chosen = data.stratified_subset(y, one.samples, one.probe).to(y.device)
        x, y = x[chosen], y[chosen]
    start = time.perf_counter()
    report = ah.layerwise_alignment(
        trainer.model, x, y, layers=[f"layer{one.layer}"], products=one.products or None, precision=precision
    )
    return {
        "layer": one.layer,
        "samples": one.samples,
        "probe": one.probe,
        "products": one.products,
        "cka": float(report.cka),
        "cka_error": 0.0 if report.cka_standard_error is None else float(report.cka_standard_error),
        "seconds": round(time.perf_counter() - start, 3),
    }


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figure and print the table."""
    (found,) = runs.values()
    samples, alignments, path = len(dataset.train_y), found.tables[TABLE], args.output / "whole_training_set.png"
    figure.whole_training_set(alignments, samples, title(args, dataset, found.rows[-1]), path)
    print_table(found.rows, alignments, samples)
    print(f"figure: {path}")


def title(args: argparse.Namespace, dataset: data.Dataset, last: Row) -> str:
    """The title says what a reader must know: data, network, recipe and how well it did."""
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images: train accuracy {last['train_accuracy']:.1%}, "
        f"test accuracy {counted(last['test_accuracy'], len(dataset.test_y))}\n"
        f"depth {args.depth}, width {args.width}, learning rate {args.lr:g}, batch size {args.batch_size}, "
        f"{args.epochs} epochs, seed {args.seed}"
    )


STUDY = Study(
    "whole_training_set",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "depth", "width", "probe_size", "probes", "products", "exact_layers", "precision"),
    distinct=["--exact-layers"],
    check=check,
    load=load,
    tables=[TABLE],
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
