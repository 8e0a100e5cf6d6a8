"""Alignment by layer over a grid of learning rates, batch sizes and optimizers (figures 4 and 11 to 15).

Every cell of the grid is trained to the same training loss, or to an epoch limit where it does not get there. Start
the same command several times, and the processes share the cells; whatever was interrupted goes on when the
command is given again. The numbers are the same for any number of processes and interruptions.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

from experiments.common import command_line, data, models
from experiments.common.jobs import Job, Run, run_to_end_or_divergence
from experiments.common.measuring import aligned_progress, tracker, training_loss
from experiments.common.store import RunStore
from experiments.common.study import Study
from experiments.common.training import OPTIMIZERS, Recipe, Trainer
from experiments.hyperparameters import figure
from experiments.hyperparameters.cells import Cell, Result, print_table
from experiments.hyperparameters.figure import Block, Panel

IMAGES = {"dataset": "cifar10", "width_factor": 1.0, "loss_target": 0.1, "epochs": 500, "probe_size": 1000}
PRESETS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {
        "dataset": "fashion-mnist",
        "sgd_lr": [0.001, 0.003, 0.01, 0.03],
        "adam_lr": [3e-5, 1e-4, 3e-4, 1e-3],
        "batch_sizes": [32, 128, 512],
        "loss_target": 0.1,
        "epochs": 500,
        "probe_size": 1000,
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
    command_line.add(p, "--model")
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
    p.add_argument("--loss-target", type=positive, default=0.1, help="training loss (nats) to stop at, after an epoch")
    command_line.add(p, "--epochs", help="limit on the passes over the training set")
    command_line.add(p, "--probe-size", help="training samples to measure on, stratified; time grows as n squared")
    command_line.add(p, "--precision")
    command_line.add(p, "--seed")


def load(args: argparse.Namespace) -> data.Dataset:
    """The data set with the training samples and labels that were asked for."""
    return data.with_label_noise(command_line.load(args), args.label_noise, args.seed)


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
    """The study has one run for each cell of the grid."""
    recipes = {cell: command_line.recipe(args, **asdict(cell)) for cell in cells(args)}
    return [
        Job(
            cell.name,
            partial(train, args, recipe, dataset),
            recipe,
            finished=lambda rows: len(rows) == 2,  # before training, and at its end
        )
        for cell, recipe in recipes.items()
    ]


def train(args: argparse.Namespace, recipe: Recipe, dataset: data.Dataset, store: RunStore) -> int:
    """Train a cell to its end; returns the signal that came, or 0."""
    model = models.network(args, dataset, args.seed)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe)
    tracked = tracker(model, data.probe(dataset, args.probe_size, args.seed), args.precision)

    def reached() -> bool:
        after_an_epoch = trainer.iteration % trainer.batches_per_epoch == 0
        return after_an_epoch and training_loss(trainer, dataset)[0] <= args.loss_target

    measured = partial(aligned_progress, trainer, dataset, tracked)
    at = [0, trainer.total]
    return run_to_end_or_divergence(store, trainer, at, measured, args.checkpoint_every, reached)


# ---- the grid


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figure and print the table of what there is."""
    found = {cell: Result(cell, runs[cell.name].rows) for cell in cells(args)}
    blocks = [
        Block(
            TITLES[optimizer],
            [f"batch size {size}" for size in args.batch_sizes],
            [f"learning rate {lr:g}" for lr in learning_rates(args, optimizer)],
            [
                [panel(args, found[Cell(optimizer, lr, size)]) for lr in learning_rates(args, optimizer)]
                for size in args.batch_sizes
            ],
        )
        for optimizer in args.optimizers
    ]
    path = args.output / "hyperparameters.png"
    figure.alignment_grid(blocks, title(args, dataset), path)
    print_table(list(found.values()), args.loss_target)
    print(f"figure: {path}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """The title says what a reader must know: data, network and when training stops."""
    noise = f", {args.label_noise:.0%} of them with random labels" if args.label_noise else ""
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images{noise}\n"
        f"{models.described(args)}, seed {args.seed}\n"
        f"trained to a training loss of {args.loss_target:g}, or for {args.epochs} epochs where it stays above"
    )


def panel(args: argparse.Namespace, of: Result) -> Panel:
    """A cell as the figure shows it."""
    if not of.rows:
        return Panel(message="not begun")
    if not of.finished:
        return Panel(of.alignment(0), message="not finished")
    last = of.rows[-1]
    if of.diverged:
        return Panel(of.alignment(0), message=f"diverged after\n{last['epoch']:.2g} epochs")
    remark = f"{last['epoch']:.0f} epochs"
    if not of.reached(args.loss_target):
        remark = f"limit, at loss {last['train_loss']:.2f}"
    return Panel(of.alignment(0), of.alignment(1), last["train_loss"], last["test_loss"], remark=remark)


STUDY = Study(
    "hyperparameters",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "label_noise", "model", "loss_target", "probe_size", "precision"),
    presets=PRESETS,
    check=command_line.require_feedforward,
    distinct=("--optimizers", "--sgd-lr", "--adam-lr", "--batch-sizes"),
    load=load,
    shared=True,
    flush_denormals=True,
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
