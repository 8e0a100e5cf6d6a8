"""Alignment by layer over a grid of learning rates, batch sizes and optimizers (figures 4 and 11 to 15).

Every cell of the grid is trained to the same training loss, or to an epoch limit where it does not get there. Start
the same command several times, and the processes share the cells; whatever was interrupted goes on when the
command is given again. The numbers are the same for any number of processes and interruptions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ahkernels as ah
from experiments.common import command_line, data, figures, jobs, models
from experiments.common.measuring import aligned_progress, training_loss
from experiments.common.store import RunStore, describe_environment, locked, read_metrics
from experiments.common.training import OPTIMIZERS, Recipe, Trainer, flushed_denormals
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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole, positive = command_line.whole, command_line.positive
    p = command_line.command_line(__doc__)
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
    p.add_argument("--output", type=Path, help="folder for the results (default: runs/hyperparameters-DATASET)")
    command_line.add(p, "--overwrite", help="discard these cells' runs in the output folder; for one process")
    command_line.add(p, "--checkpoint-every", "--threads", "--device")
    return p


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; exits with a message that names the option if a value is wrong."""
    p = parser()
    args = command_line.parse(p, PRESETS, arguments)
    command_line.require_distinct(p, args, "--optimizers", "--sgd-lr", "--adam-lr", "--batch-sizes")
    command_line.require_data_dir(p, args)
    args.output = args.output or Path("runs") / f"hyperparameters-{args.dataset}"
    return args


def learning_rates(args: argparse.Namespace, optimizer: str) -> list[float]:
    """Those of an optimizer, in the order given."""
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


def config(args: argparse.Namespace, cell: Cell, dataset: data.Dataset) -> dict[str, Any]:
    """All that determines a cell's numbers, up to the machine it runs on."""
    names = ("dataset", "label_noise", "model", *models.size_options(args), "loss_target", "probe_size", "precision")
    return {
        **{name: getattr(args, name) for name in names},
        **asdict(recipe(args, cell)),
        **dataset.describe(),
    }


def recipe(args: argparse.Namespace, cell: Cell) -> Recipe:
    """How a cell is trained."""
    return command_line.recipe(args, **asdict(cell))


def train(store: RunStore, cell: Cell, args: argparse.Namespace, dataset: data.Dataset) -> int:
    """Train a cell to its end; returns the signal that came, or 0."""
    model = models.network(args, dataset).to(args.device)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe(args, cell))
    probe = data.stratified_subset(dataset.train_y, args.probe_size, args.seed).to(args.device)
    x, y = dataset.train_x[probe], dataset.train_y[probe]

    def reached() -> bool:
        after_an_epoch = trainer.iteration % trainer.batches_per_epoch == 0
        return after_an_epoch and training_loss(trainer, dataset)[0] <= args.loss_target

    return jobs.train(
        store,
        trainer,
        cell.name,
        [0, trainer.total],
        lambda: aligned_progress(trainer, dataset, x, y, args.precision),
        args.checkpoint_every,
        reached,
    )


# ---- the grid


def result(args: argparse.Namespace, cell: Cell) -> Result:
    """What the output folder holds of a cell now, whoever trained it."""
    return Result(cell, read_metrics(args.output / cell.name))


def job(args: argparse.Namespace, cell: Cell, dataset: data.Dataset) -> jobs.Job:
    """A cell as the processes share it out."""
    return jobs.Job(
        cell.name,
        config(args, cell, dataset),
        lambda rows: Result(cell, rows).finished,
        lambda store: train(store, cell, args, dataset),
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


def draw(args: argparse.Namespace, dataset: data.Dataset) -> None:
    """The figure and the table of what there is; processes take turns, so that the last one draws the latest."""
    with locked(args.output):
        found = {cell: result(args, cell) for cell in cells(args)}
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
        paths = figures.files(args.output, "hyperparameters")
        figure.alignment_grid(blocks, title(args, dataset), paths)
    print_table(list(found.values()), args.loss_target)
    print(f"figure: {paths[-1]}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """What a reader must know about the figure: data, network and when training stops."""
    noise = f", {args.label_noise:.0%} of them with random labels" if args.label_noise else ""
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images{noise}\n"
        f"{models.described(args)}, seed {args.seed}\n"
        f"trained to a training loss of {args.loss_target:g}, or for {args.epochs} epochs where it stays above"
    )


# ---- the study


def study(args: argparse.Namespace) -> int:
    """All cells, the figure and the table; returns the exit status."""
    with flushed_denormals() as flushed:
        dataset = load(args)
        environment = {**describe_environment(args.device, ah.build_info()), "denormals_are_zero": flushed}
        status = jobs.share(
            args.output, [job(args, cell, dataset) for cell in cells(args)], environment, args.overwrite
        )
    if not status:
        draw(args, dataset)
    return status


def load(args: argparse.Namespace) -> data.Dataset:
    """The data set on its device, with the training samples and labels that were asked for."""
    return data.with_label_noise(command_line.load(args), args.label_noise, args.seed).to(args.device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; a mistake of the user's ends in one message and status 2, not in a traceback."""
    return command_line.finish(__file__, study, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
