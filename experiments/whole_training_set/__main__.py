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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ahkernels as ah
from experiments.common import command_line, data, figures
from experiments.common.measuring import progress
from experiments.common.models import feedforward
from experiments.common.running import opened, run, say, stopped
from experiments.common.store import Row, RunStore, describe_environment
from experiments.common.training import DivergedError, Trainer
from experiments.whole_training_set import figure

TABLE = "alignments"


@dataclass(frozen=True)
class Job:
    """One alignment to measure: of a layer, on some training images."""

    layer: int  # counted from 1, next to the input
    samples: int
    probe: int  # seed of the subset, and 0 for all
    products: int  # 0 for the exact alignment

    @property
    def key(self) -> tuple[int, int, int, int]:
        """As in the table."""
        return self.layer, self.samples, self.probe, self.products


# ---- command line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.command_line(__doc__)
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
    p.add_argument("--output", type=Path, help="folder for the results (default: runs/whole_training_set-DATASET)")
    command_line.add(p, "--overwrite", "--checkpoint-every", "--threads", "--device")
    return p


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; exits with a message that names the option if a value is wrong."""
    p = parser()
    args = p.parse_args(arguments)
    command_line.require_distinct(p, args, *(["--exact-layers"] if args.exact_layers else []))
    command_line.require_data_dir(p, args)
    if args.exact_layers and max(args.exact_layers) > args.depth:
        p.error(
            f"argument --exact-layers: expected layers from 1 to {args.depth}, --depth, got {max(args.exact_layers)}"
        )
    args.output = args.output or Path("runs") / f"whole_training_set-{args.dataset}"
    return args


# ---- one run


def config(args: argparse.Namespace, dataset: data.Dataset) -> dict[str, Any]:
    """All that determines a run's numbers, up to the machine it runs on."""
    names = ("dataset", "depth", "width", "probe_size", "probes", "products", "exact_layers", "precision")
    return command_line.config(args, dataset, names)


def jobs(args: argparse.Namespace, samples: int) -> list[Job]:
    """What is measured of the trained network, in this order."""
    layers = range(1, args.depth + 1)
    probes = [Job(layer, args.probe_size, probe, 0) for probe in range(args.probes) for layer in layers]
    estimated = [Job(layer, samples, 0, args.products) for layer in layers]
    return [*probes, *estimated, *(Job(layer, samples, 0, 0) for layer in args.exact_layers)]


def measure(trainer: Trainer, dataset: data.Dataset, job: Job, precision: str) -> Row:
    """One alignment, with its standard error (0 where it is exact) and the seconds that it took."""
    x, y = dataset.train_x, dataset.train_y
    if job.samples < len(y):
        chosen = data.stratified_subset(y, job.samples, job.probe).to(y.device)
        x, y = x[chosen], y[chosen]
    start = time.perf_counter()
    report = ah.layerwise_alignment(
        trainer.model, x, y, layers=[f"layer{job.layer}"], products=job.products or None, precision=precision
    )
    return {
        "layer": job.layer,
        "samples": job.samples,
        "probe": job.probe,
        "products": job.products,
        "cka": float(report.cka),
        "cka_error": 0.0 if report.cka_standard_error is None else float(report.cka_standard_error),
        "seconds": round(time.perf_counter() - start, 3),
    }


def train(store: RunStore, name: str, args: argparse.Namespace, dataset: data.Dataset) -> int:
    """Train to the end and measure; returns the signal that came, or 0."""
    model = feedforward(dataset.train_x.shape[1], args.width, args.depth, dataset.classes, args.seed).to(args.device)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, command_line.recipe(args))

    def measured() -> Row:
        found = store.tables.setdefault(TABLE, [])
        known = {tuple(int(row[name]) for name in ("layer", "samples", "probe", "products")) for row in found}
        for job in jobs(args, len(dataset.train_y)):
            if job.key in known:
                continue
            found.append(measure(trainer, dataset, job, args.precision))
            store.save(trainer.state())
            how = f"from {job.products} products" if job.products else "exactly"
            row = found[-1]
            say(f"{name}: layer {job.layer} on {job.samples:,} images {how}: {row['cka']:.4f}, {row['seconds']:.1f} s")
        return progress(trainer, dataset)

    try:
        return run(store, trainer, name, [trainer.total], measured, args.checkpoint_every)
    except DivergedError as error:
        raise DivergedError(f"{name}: {error}; choose a smaller --lr and another --output") from error


# ---- the study


def print_table(rows: Sequence[Row], alignments: Sequence[Row], samples: int) -> None:
    """Each layer's alignment on the probes and on the whole set, with times."""
    print(f"alignment with the labels after {rows[-1]['iteration']} iterations:")
    print(f"  {'layer':<6}  {'probes':<17}  {f'{samples:,} images, estimated':<30}  exactly")
    for layer in sorted({int(row["layer"]) for row in alignments}):
        of_layer = [row for row in alignments if row["layer"] == layer]
        probes = [row["cka"] for row in of_layer if row["samples"] < samples]
        line = f"  {layer:<6}  {f'{min(probes):.4f} ... {max(probes):.4f}' if probes else '':<17}"
        for row in of_layer:
            if row["samples"] == samples and row["products"]:
                line += f"  {row['cka']:.4f} ± {row['cka_error']:.4f} in {row['seconds']:.1f} s".ljust(32)
        for row in of_layer:
            if row["samples"] == samples and not row["products"]:
                line += f"  {row['cka']:.4f} in {row['seconds']:.1f} s"
        print(line.rstrip())
    print(f"test accuracy {rows[-1]['test_accuracy']:.1%}, train accuracy {rows[-1]['train_accuracy']:.1%}")


def title(args: argparse.Namespace, dataset: data.Dataset, last: Row) -> str:
    """What a reader must know about the figure: data, network, recipe and how well it did."""
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images: train accuracy {last['train_accuracy']:.1%}, "
        f"test accuracy {last['test_accuracy']:.1%}\n"
        f"depth {args.depth}, width {args.width}, learning rate {args.lr:g}, batch size {args.batch_size}, "
        f"{args.epochs} epochs, seed {args.seed}"
    )


def study(args: argparse.Namespace) -> int:
    """The run, the figure and the table; returns the exit status."""
    dataset = command_line.load(args)
    samples = len(dataset.train_y)
    if args.probe_size == samples:
        raise command_line.UsageError(
            f"argument --probe-size: expected less than {samples}, the training samples, got {args.probe_size}"
        )
    name = f"seed-{args.seed}"
    environment = describe_environment(args.device, ah.build_info())
    with opened(args.output, {name: config(args, dataset)}, environment, args.overwrite, tables=[TABLE]) as stores:
        store = stores[name]
        if not store.finished and (number := train(store, name, args, dataset.to(args.device))):
            return stopped(store, name, number)
        rows, alignments = store.rows, store.tables[TABLE]
    paths = figures.files(args.output, "whole_training_set")
    figure.whole_training_set(alignments, samples, title(args, dataset, rows[-1]), paths)
    print_table(rows, alignments, samples)
    print(f"figure: {paths[-1]}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; a mistake of the user's ends in one message and status 2, not in a traceback."""
    return command_line.finish(__file__, study, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
