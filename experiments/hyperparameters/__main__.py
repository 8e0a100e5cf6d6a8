"""Alignment by layer over a grid of learning rates, batch sizes and optimizers (figures 4 and 11 to 15).

Every cell of the grid is trained with one or several seeds until the averaged loss is small, or to an epoch limit where
it does not get there; such cells are marked, and left out of the correlations. Start the same command several times,
and the processes share the runs; whatever was interrupted goes on when the command is given again. The numbers are the
same for any number of processes and interruptions.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

from experiments.common import command_line, data, models
from experiments.common.figures import named_seeds
from experiments.common.jobs import Job, Run, run_to_end_or_divergence
from experiments.common.measuring import CENTERINGS, probe_trackers, probed_progress
from experiments.common.store import RunStore, csv_of, write_atomically
from experiments.common.study import Study
from experiments.common.training import OPTIMIZERS, Recipe, Trainer
from experiments.hyperparameters import figure
from experiments.hyperparameters.cells import Cell, Result, print_table, summary
from experiments.hyperparameters.figure import Block, Panel

# Losses, epochs and image networks are the paper's; biases, probes and the rule that ends training are those of its
# authors' code. The seeds are ours. "fashion-mnist" is the grid of ReLU networks.
PAPER = {"stop_loss": 0.1, "epochs": 500, "probe_size": 200, "seeds": [0, 1, 2]}
IMAGES = {**PAPER, "dataset": "cifar10", "width_factor": 1.0, "augment": True}
PRESETS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {
        **PAPER,
        "dataset": "fashion-mnist",
        "bias": True,
        "sgd_lr": [0.001, 0.003, 0.01, 0.03],
        "adam_lr": [3e-5, 1e-4, 3e-4, 1e-3],
        "batch_sizes": [32, 128, 512],
    },
    "cifar10-resnet18": {
        **IMAGES,
        "model": "resnet18",
        "optimizers": ["sgd"],
        "sgd_lr": [0.001, 0.003, 0.01, 0.02],
        "batch_sizes": [32, 128, 512],
    },
    "cifar10-vgg19": {
        **IMAGES,
        "model": "vgg19",
        "sgd_lr": [0.0005, 0.001, 0.0032, 0.01],
        "adam_lr": [3.2e-5, 1e-4, 3.2e-4],
        "batch_sizes": [32, 128, 512, 2048],
    },
    "cifar100-vgg19": {
        **IMAGES,
        "dataset": "cifar100",
        "model": "vgg19",
        "optimizers": ["sgd"],
        "sgd_lr": [0.001, 0.005, 0.01],
        "batch_sizes": [128],
        "epochs": 100,
    },
}
TITLES = {"sgd": "SGD with momentum", "adam": "Adam"}


# ---- command line


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    whole, positive = command_line.whole, command_line.positive
    command_line.add(p, "--dataset", "--data-dir", "--train-size")
    p.add_argument(
        "--label-noise",
        type=command_line.fraction,
        default=0.0,
        metavar="F",
        help="fraction of the training labels that is drawn anew, uniformly; test labels stay",
    )
    command_line.add(p, "--augment", "--model")
    command_line.add(p, "--depth", help="linear layers (feedforward)")
    command_line.add(p, "--width", help="units of a hidden layer (feedforward)")
    command_line.add(p, "--bias", help="train biases, which are zero at the start (feedforward)")
    command_line.add(p, "--initialisation")
    command_line.add(p, "--width-factor")
    p.add_argument("--optimizers", choices=OPTIMIZERS, nargs="+", default=list(OPTIMIZERS), help="to compare")
    p.add_argument(
        "--sgd-lr", type=positive, nargs="+", default=[0.003, 0.01, 0.03], metavar="LR", help="learning rates of SGD"
    )
    p.add_argument(
        "--adam-lr", type=positive, nargs="+", default=[1e-4, 3e-4, 1e-3], metavar="LR", help="learning rates of Adam"
    )
    p.add_argument(
        "--batch-sizes", type=whole(1), nargs="+", default=[32, 128, 512], metavar="B", help="samples in a minibatch"
    )
    command_line.add(p, "--momentum", help="momentum of SGD, first beta of Adam")
    command_line.add(p, "--weight-decay", help="L2 penalty")
    command_line.add(p, "--stop-loss", default=0.1)
    command_line.add(p, "--epochs", help="limit on the passes over the training set")
    command_line.add(p, "--probe-size", help=command_line.TWO_PROBES)
    command_line.add(p, "--precision")
    p.add_argument(
        "--seeds", type=command_line.seed, nargs="+", default=[0], metavar="S", help="runs of each cell, drawn together"
    )


def check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where options do not fit the model or the data."""
    command_line.require_feedforward(p, args)
    command_line.require_colour(p, args)


def load(args: argparse.Namespace) -> data.Dataset:
    """The data set with the training samples and labels that were asked for, the same for every seed."""
    dataset = command_line.load(args, subset_seed=0)
    command_line.require_probes(args, dataset)
    return data.with_label_noise(dataset, args.label_noise, 0)


def learning_rates(args: argparse.Namespace, optimizer: str) -> list[float]:
    """The learning rates of an optimizer in the order given."""
    return list(getattr(args, f"{optimizer}_lr"))


def cells(args: argparse.Namespace) -> list[Cell]:
    """Every cell, in the order in which one process trains them."""
    return [
        Cell(optimizer, lr, batch_size)
        for optimizer in args.optimizers
        for batch_size in args.batch_sizes
        for lr in learning_rates(args, optimizer)
    ]


# ---- one cell


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has one run for each cell of the grid and each seed."""
    recipes = {
        cell.run(seed): command_line.recipe(args, **asdict(cell), seed=seed)
        for cell in cells(args)
        for seed in args.seeds
    }
    return [
        Job(
            name,
            partial(train, args, recipe, dataset),
            recipe,
            finished=lambda rows: len(rows) == 2,  # before training, and at its end
        )
        for name, recipe in recipes.items()
    ]


def train(args: argparse.Namespace, recipe: Recipe, dataset: data.Dataset, store: RunStore) -> int:
    """Train a cell with a seed to its end; returns the signal that came, or 0."""
    model = models.network(args, dataset, recipe.seed)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)
    trackers = probe_trackers(model, data.probes(dataset, args.probe_size, recipe.seed), args.precision)
    measured = partial(probed_progress, trainer, dataset, trackers)
    return run_to_end_or_divergence(store, trainer, [0, trainer.total], measured, args.checkpoint_every)


# ---- the grid


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figure, and write and print the table of what there is."""
    found = {cell: Result(cell, [runs[cell.run(seed)].rows for seed in args.seeds]) for cell in cells(args)}
    blocks = [
        Block(
            TITLES[optimizer],
            [f"batch size {size}" for size in args.batch_sizes],
            [f"learning rate {lr:g}" for lr in learning_rates(args, optimizer)],
            [
                [panel(found[Cell(optimizer, lr, size)]) for lr in learning_rates(args, optimizer)]
                for size in args.batch_sizes
            ],
        )
        for optimizer in args.optimizers
    ]
    path = args.output / "hyperparameters.png"
    figure.alignment_grid(blocks, title(args, dataset), path)
    lines = [summary(one, len(dataset.test_y)) for one in found.values() if one.trained]
    write_atomically(args.output / "hyperparameters.csv", csv_of(lines))
    print_table(list(found.values()), len(dataset.test_y))
    print(f"figure: {path}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """The title says what a reader must know: data, network and when training stops."""
    noise = f", {args.label_noise:.0%} of them with random labels" if args.label_noise else ""
    return (
        f"{command_line.training_images(args, dataset)}{noise}, alignment on {args.probe_size} of them\n"
        f"{models.described(args)}, {named_seeds(args.seeds)}\n"
        f"trained to an averaged loss of {args.stop_loss:g} at two epoch ends, or for {args.epochs} epochs "
        "(dotted background)"
    )


def panel(of: Result) -> Panel:
    """A cell as the figure shows it."""
    if not of.begun:
        return Panel(message="not begun")
    if not of.finished:
        return Panel(message="not finished")
    if of.diverged:
        return Panel(message=f"diverged after\n{of.mean('epoch'):.2g} epochs")
    remark = f"{of.mean('epoch'):.0f} epochs"
    if not of.reached:
        remark = f"limit: {of.at_limit} of {len(of.runs)}, loss {of.mean('train_loss'):.2f}"
    return Panel(
        {centering: of.alignments(-1, centering) for centering in CENTERINGS},
        of.alignments(0, "per_output"),
        of.alignments(-1, "per_output", "test"),
        of.mean("train_loss"),
        of.mean("test_loss"),
        at_limit=not of.reached,
        remark=remark,
    )


STUDY = Study(
    "hyperparameters",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "label_noise", "model", "probe_size", "precision"),
    presets=PRESETS,
    check=check,
    distinct=("--optimizers", "--sgd-lr", "--adam-lr", "--batch-sizes", "--seeds"),
    load=load,
    shared=True,
    flush_denormals=True,
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
