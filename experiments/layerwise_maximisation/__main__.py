"""Layer-wise feature maximisation (LFM): alignment of networks trained layer by layer (figures 16 and 17).

LFM networks learn one layer after the other, from the input on, each towards features that are alike within a class and
orthogonal between classes (algorithm 1). Beside them stand networks trained end to end. Runs are independent: start the
same command several times, and the processes share them; whatever was interrupted, also within a layer, goes on when
the command is given again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from experiments.common import command_line, data
from experiments.common.data import Samples
from experiments.common.jobs import Job, Run, run_to_end_or_divergence
from experiments.common.measuring import probe_trackers, probed_progress
from experiments.common.models import feedforward
from experiments.common.running import say
from experiments.common.store import Row, RunStore, csv_of, write_atomically
from experiments.common.study import Study
from experiments.common.training import Recipe, Trainer
from experiments.layerwise_maximisation import figure
from experiments.layerwise_maximisation.figure import Outcome
from experiments.layerwise_maximisation.layerwise_trainer import LayerwiseTrainer, network
from experiments.layerwise_maximisation.tables import print_table, summary

LAYERS = "layers"  # the table of a run by LFM

# Sizes and rates are the paper's; biases, batches and probes are those of its authors' code for other figures.
MNIST: dict[str, Any] = {
    "dataset": "mnist",
    "train_size": 50_000,
    "lfm_widths": [32, 256],
    "end_to_end_widths": [32],
    "depth": 10,
    "bias": True,
    "lfm_lr": 0.01,
    "lr": 0.003,
    "batch_size": 200,
    "epochs": 100,
    "probe_size": 200,
}
PRESETS = {
    "mnist": MNIST,
    "cifar10": MNIST | {"dataset": "cifar10", "lfm_widths": [256, 1024], "end_to_end_widths": [256]},
}


@dataclass(frozen=True)
class Network:
    """One network: layer by layer or end to end, and its width."""

    layerwise: bool
    width: int

    @property
    def name(self) -> str:
        """The name of the run's folder, which is printed with all messages."""
        return f"{'lfm' if self.layerwise else 'end-to-end'}-width{self.width}"


# ---- command line


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    whole = command_line.whole
    command_line.add(p, "--dataset", "--data-dir", "--train-size")
    p.add_argument(
        "--lfm-widths", type=whole(1), nargs="+", default=[32, 128], metavar="N", help="of networks trained by LFM"
    )
    p.add_argument(
        "--end-to-end-widths", type=whole(1), nargs="+", default=[32], metavar="N", help="of the networks beside them"
    )
    command_line.add(p, "--depth")
    command_line.add(p, "--bias", help="train biases, end to end, which are zero at the start; LFM always does")
    p.add_argument(
        "--lfm-lr", type=command_line.positive, default=0.01, metavar="LR", help="learning rate of Adam, LFM"
    )
    p.add_argument(
        "--patience",
        type=whole(1),
        default=5,
        metavar="P",
        help="a layer ends after so many epochs without a lower validation loss, LFM",
    )
    p.add_argument("--max-epochs", type=whole(1), default=50, metavar="E", help="of a layer, LFM")
    p.add_argument(
        "--validation-fraction",
        type=command_line.real("a number in (0, 1)", lambda value: 0 < value < 1),
        default=0.1,
        metavar="F",
        help="of the training samples, stratified, LFM; end to end trains on them, too",
    )
    command_line.add(p, "--lr", default=0.03, help="learning rate of SGD, end to end")
    command_line.add(p, "--momentum", help="momentum of SGD, first beta of Adam")
    command_line.add(p, "--weight-decay", help="L2 penalty of SGD, end to end")
    command_line.add(p, "--batch-size")
    command_line.add(p, "--epochs", help="passes over the training set, end to end")
    command_line.add(p, "--probe-size", help="training samples to measure on, stratified, the same for every network")
    command_line.add(p, "--precision")
    command_line.add(p, "--seed", help="of weights, batches and subsets")


def networks(args: argparse.Namespace) -> list[Network]:
    """The networks in the order in which one process trains them, which is the figure's."""
    return [*(Network(True, n) for n in args.lfm_widths), *(Network(False, n) for n in args.end_to_end_widths)]


# ---- data


def load(args: argparse.Namespace) -> data.Dataset:
    """All training samples that were asked for; the validation set leaves enough of them for the probe."""
    dataset = command_line.load(args)
    most = len(dataset.train_y) - args.probe_size
    if not 1 <= validation_size(args, dataset) <= most:
        raise command_line.UsageError(
            f"argument --validation-fraction: expected one that makes a validation set of 1 to {most} samples, which "
            f"leaves the {args.probe_size} of --probe-size, got {args.validation_fraction:g}"
        )
    return dataset


def validation_size(args: argparse.Namespace, dataset: data.Dataset) -> int:
    """The number of samples in the validation set."""
    return round(args.validation_fraction * len(dataset.train_y))


def split(dataset: data.Dataset, size: int, seed: int) -> tuple[data.Dataset, Samples]:
    """Split a data set into one with fewer training samples and the samples held out, which are ``size``."""
    held_out = data.stratified_subset(dataset.train_y, size, seed).to(dataset.train_y.device)
    kept = dataset.train_y.new_ones(len(dataset.train_y)).bool()
    kept[held_out] = False
    training = replace(dataset, train_x=dataset.train_x[kept], train_y=dataset.train_y[kept])
    return training, (dataset.train_x[held_out], dataset.train_y[held_out])


# ---- one run


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run for each network."""
    return [
        Job(
            one.name,
            partial(train, args, one, dataset),
            recipe_of(args, one),
            asdict(one) | ({"patience": args.patience} if one.layerwise else {"bias": args.bias}),
            finished=lambda rows: len(rows) == 2,  # before training, and after it or where it diverged
        )
        for one in networks(args)
    ]


def recipe_of(args: argparse.Namespace, one: Network) -> Recipe:
    """How a network, or each of its layers, is trained."""
    if not one.layerwise:
        return command_line.recipe(args)
    return command_line.recipe(args, optimizer="adam", lr=args.lfm_lr, weight_decay=0.0, epochs=args.max_epochs)


def layerwise_trainer(
    store: RunStore, args: argparse.Namespace, one: Network, training: data.Dataset, validation: Samples
) -> LayerwiseTrainer:
    """Make a trainer by LFM; the store's table gets a row for every layer at its end."""

    def ended(layer: Row) -> None:
        store.tables.setdefault(LAYERS, []).append(layer)
        say(
            f"{store.name}: layer {layer['layer']} of {args.depth} after {layer['epochs']} epochs: validation loss "
            f"{layer['validation_loss']:.4f}, {layer['validation_loss_before']:.4f} before"
        )

    model = network(*sizes(args, one, training)).to(args.device)
    return LayerwiseTrainer(
        model, training.train_x, training.train_y, validation, recipe_of(args, one), args.patience, ended
    )


def end_to_end_trainer(args: argparse.Namespace, one: Network, dataset: data.Dataset) -> Trainer:
    """Make a trainer of the paper's ReLU network."""
    model = feedforward(*sizes(args, one, dataset), bias=args.bias).to(args.device)
    return Trainer(model, dataset.train_x, dataset.train_y, recipe_of(args, one))


def sizes(args: argparse.Namespace, one: Network, dataset: data.Dataset) -> tuple[int, int, int, int, int]:
    """The inputs, width, depth, outputs and seed of a network."""
    return dataset.train_x.shape[1], one.width, args.depth, dataset.classes, args.seed


def train(args: argparse.Namespace, one: Network, dataset: data.Dataset, store: RunStore) -> int:
    """Train a network to its end; returns the signal that came, or 0."""
    training, validation = split(dataset, validation_size(args, dataset), args.seed)
    probe = data.probe(training, args.probe_size, args.seed)

    def trained(trainer: Trainer, seen: data.Dataset, at: Sequence[int], reached: Callable[[], bool]) -> int:
        trackers = probe_trackers(trainer.model, {"train": probe}, args.precision)
        measured = partial(probed_progress, trainer, seen, trackers)
        return run_to_end_or_divergence(store, trainer, at, measured, args.checkpoint_every, reached)

    if one.layerwise:
        by_layer = layerwise_trainer(store, args, one, training, validation)
        return trained(by_layer, training, [0], lambda: by_layer.done)
    whole = end_to_end_trainer(args, one, dataset)
    return trained(whole, dataset, [0, whole.total], lambda: False)


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figure and write and print the table of the networks that are trained."""
    trained = {
        one: run.rows
        for one in networks(args)
        if (run := runs[one.name]).finished and not math.isnan(run.rows[-1]["train_loss"])
    }
    if not trained:
        say("nothing to draw: no network is trained yet")
        return
    test = len(dataset.test_y)
    lines = [summary("LFM" if one.layerwise else "end to end", one.width, rows, test) for one, rows in trained.items()]
    write_atomically(args.output / "layerwise_maximisation.csv", csv_of(lines))
    outcomes = [
        Outcome(
            f"{line['method']}, width {line['width']}: test accuracy\n{line['test_accuracy']:.1%} ± "
            f"{line['binomial_error']:.1%} (binomial)",
            rows,
        )
        for line, rows in zip(lines, trained.values(), strict=True)
    ]
    path = args.output / "layerwise_maximisation.png"
    figure.layerwise_maximisation(outcomes, title(args, dataset), path)
    print_table(lines)
    print(f"figure: {path}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """The title says what a reader must know: data, networks and training."""
    samples, held_out = len(dataset.train_y), validation_size(args, dataset)
    return (
        f"{args.dataset}, {samples:,} training images, alignment on {args.probe_size:,} of them; depth {args.depth}, "
        f"batch size {args.batch_size}, seed {args.seed}\n"
        f"LFM: Adam, learning rate {args.lfm_lr:g}, {held_out:,} of the images for validation\n"
        f"end to end: SGD, learning rate {args.lr:g}, {args.epochs} epochs, {'with' if args.bias else 'without'} biases"
    )


STUDY = Study(
    "layerwise_maximisation",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "depth", "validation_fraction", "probe_size", "precision"),
    presets=PRESETS,
    distinct=("--lfm-widths", "--end-to-end-widths"),
    load=load,
    shared=True,
    tables=[LAYERS],
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
