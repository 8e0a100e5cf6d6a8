"""Alignment hierarchy: which layers' tangent kernels align with the labels (figures 2, 7, 9 and 10).

Trains the paper's bias-free ReLU network and measures every layer's alignment at log-spaced iterations.
Without arguments it trains on scikit-learn's digits. A run that was interrupted, by whatever, goes on when
the same command is given again, and ends with the same numbers.
"""

from __future__ import annotations

import argparse
import math
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from common import data, figures
from common.models import feedforward
from common.store import Row, RunStore, StoreError, describe_environment
from common.training import DivergedError, Recipe, Trainer, evaluate, measurement_grid
from torch import Tensor
from tqdm import tqdm

import ahkernels as ah

TRAIN_EVALUATION = 10_000  # the training loss is taken on no more samples than this
DEFAULTS = Recipe()


class UsageError(ValueError):
    """A command-line value that only the data can refute."""


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """States the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


# ---- command line


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number in a range."""
    expected = f"of at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected a whole number {expected}, got {text!r}")
        return value

    return parse


def real(expected: str, accept: Callable[[float], bool]) -> Callable[[str], float]:
    """An argparse type: a finite number that ``accept`` takes."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and accept(value)):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


def device(text: str) -> torch.device:
    """An argparse type: a device that this machine has."""
    try:
        value = torch.device(text)
        torch.empty(0, device=value).cpu()  # refuses what is not there, and devices that hold no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(
            f"expected a device of this machine, such as cpu or cuda, got {text!r}"
        ) from error
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    positive = real("a number above 0", lambda value: value > 0)
    p = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0] if __doc__ else None,
        formatter_class=Help,
        allow_abbrev=False,
    )
    p.add_argument("--dataset", choices=data.NAMES, default="digits", help="what to train on")
    p.add_argument(
        "--data-dir",
        type=Path,
        metavar="D",
        help="folder that holds DATASET/ in its published format (digits: none)",
    )
    p.add_argument("--depth", type=whole(1), default=10, metavar="L", help="linear layers")
    p.add_argument("--width", type=whole(1), default=256, metavar="N", help="units of a hidden layer")
    p.add_argument("--lr", type=positive, default=DEFAULTS.lr, help="learning rate of SGD")
    p.add_argument(
        "--momentum",
        type=real("a number in [0, 1)", lambda value: 0 <= value < 1),
        default=DEFAULTS.momentum,
        help="momentum of SGD",
    )
    p.add_argument(
        "--weight-decay",
        type=real("a number of at least 0", lambda value: value >= 0),
        default=DEFAULTS.weight_decay,
        help="L2 penalty of SGD",
    )
    p.add_argument("--batch-size", type=whole(1), default=DEFAULTS.batch_size, help="samples in a minibatch")
    p.add_argument("--epochs", type=whole(1), default=DEFAULTS.epochs, help="passes over the training set")
    p.add_argument(
        "--probe-size",
        type=whole(2),
        default=256,
        metavar="n",
        help="training samples to measure on, stratified, drawn per seed; time grows as n squared",
    )
    p.add_argument("--measurements", type=whole(2), default=25, help="how many, log-spaced, first and last included")
    p.add_argument("--precision", choices=("highest", "high", "medium"), default="highest", help="of the measurement")
    p.add_argument(
        "--seeds",
        type=whole(0, 2**63 - 1),
        nargs="+",
        default=[0],
        metavar="S",
        help="one run for each, drawn together",
    )
    p.add_argument("--output", type=Path, help="folder for the results (default: runs/alignment_hierarchy-DATASET)")
    p.add_argument("--overwrite", action="store_true", help="discard runs of these seeds in the output folder")
    p.add_argument("--checkpoint-every", type=whole(1), default=500, metavar="K", help="iterations between checkpoints")
    p.add_argument("--threads", type=whole(1, 4096), default=None, help="CPU threads (default: torch's choice)")
    p.add_argument("--device", type=device, default="cpu", help="where to train and measure")
    return p


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; exits with a message that names the option if a value is wrong."""
    p = parser()
    args = p.parse_args(arguments)
    if len(set(args.seeds)) < len(args.seeds):
        p.error(f"argument --seeds: expected distinct numbers, got {' '.join(map(str, args.seeds))}")
    if args.dataset != "digits" and args.data_dir is None:
        p.error(f"argument --data-dir: expected the folder that holds {args.dataset}/, got none")
    args.output = args.output or Path("runs") / f"alignment_hierarchy-{args.dataset}"
    return args


# ---- one measurement


def measure(trainer: Trainer, dataset: data.Dataset, probe_x: Tensor, probe_y: Tensor, precision: str) -> Row:
    """Losses, test accuracy and every layer's alignment; changes nothing, draws no random number."""
    train = slice(0, TRAIN_EVALUATION)
    train_loss, _ = evaluate(trainer.model, dataset.train_x[train], dataset.train_y[train])
    test_loss, test_accuracy = evaluate(trainer.model, dataset.test_x, dataset.test_y)
    if not math.isfinite(train_loss):
        raise DivergedError(f"training diverged: the training loss at iteration {trainer.iteration} is {train_loss}")
    report = ah.layerwise_alignment(
        trainer.model, probe_x, probe_y, decomposition=True, precision=precision, progress=False
    )
    row: Row = {
        "iteration": trainer.iteration,
        "epoch": trainer.epoch,
        "train_loss": train_loss,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
    }
    for name in ("cka", "forward_cka", "backward_cka"):
        values = getattr(report, name)
        if values is not None:
            row |= {f"{name}/{layer}": value for layer, value in zip(report.layers, values.tolist(), strict=True)}
    return row


# ---- one run


def say(text: str) -> None:
    """A line on stderr that leaves a progress bar whole."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


class Stop:
    """While entered, SIGINT and SIGTERM are noted in ``signal`` (0: none came); a second ends the program."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Stop:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        say("stopping after this iteration (once more: at once)")


def run(store: RunStore, trainer: Trainer, seed: int, args: argparse.Namespace, measured: Callable[[], Row]) -> int:
    """Train and measure from where the store left off; returns the signal that came, or 0."""
    if store.state is not None:
        trainer.restore(store.state)
    known = {row["iteration"] for row in store.rows}
    grid = [step for step in measurement_grid(trainer.total, args.measurements) if step not in known]
    bar = tqdm(
        total=trainer.total,
        initial=trainer.iteration,
        desc=f"seed {seed}",
        unit="it",
        dynamic_ncols=True,
        disable=None,  # no bar where stderr is no terminal: a line per measurement instead
    )

    def measure_and_save() -> None:
        row = measured()
        store.rows.append(row)
        store.save(trainer.state(), finished=trainer.iteration == trainer.total)
        if bar.disable:
            say(
                f"seed {seed}: iteration {trainer.iteration}/{trainer.total}, "
                f"train loss {row['train_loss']:.4f}, test accuracy {row['test_accuracy']:.1%}"
            )

    with Stop() as stop, bar:

        def after_step(loss: float) -> bool:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if stop.signal or trainer.iteration % args.checkpoint_every == 0:
                store.save(trainer.state())
            return bool(stop.signal)

        trainer.run(grid, measure_and_save, after_step)
    return stop.signal  # also one that came during the last measurement: the next seed must not start


# ---- the study


def print_table(runs: list[list[Row]]) -> None:
    """Final alignment by layer, mean over seeds."""
    layers = figures.layer_names(runs[0])
    columns = {
        "alignment": "cka",
        "forward only": "forward_cka",
        "backward only": "backward_cka",
    }
    values = {title: figures.table(runs, prefix)[:, -1] for title, prefix in columns.items()}
    best = figures.best_measurement(runs)
    earlier = f"iteration {int(runs[0][best]['iteration'])}"
    columns[earlier] = "cka"
    values[earlier] = figures.table(runs, "cka")[:, best]
    means = {title: figures.mean_over_runs(value) for title, value in values.items()}
    main = means["alignment"]
    peak = None if np.isnan(main).all() else int(np.nanargmax(main))
    width = max(map(len, ["layer", *layers]))
    header = f"  {'layer':<{width}}" + "".join(f"  {title:>15}" for title in columns)
    spread = len(runs) > 1
    print(f"alignment with the labels after {int(runs[0][-1]['iteration'])} iterations", end="")
    print(f", mean of {len(runs)} seeds:" if spread else ":")
    print(header + ("  least ... greatest" if spread else ""))
    for index, layer in enumerate(layers):
        line = f"{'*' if index == peak else ' '} {layer:<{width}}"
        line += "".join(f"  {mean[index]:>15.4f}" for mean in means.values())
        if spread:
            column = values["alignment"][:, index]
            line += f"  {np.fmin.reduce(column):.4f} ... {np.fmax.reduce(column):.4f}"
        print(line)
    last = [rows[-1] for rows in runs]
    print(f"{earlier} had the lowest test loss")
    print(
        f"test accuracy {np.mean([row['test_accuracy'] for row in last]):.1%}, "
        f"test loss {np.mean([row['test_loss'] for row in last]):.3f}, "
        f"train loss {np.mean([row['train_loss'] for row in last]):.3f}"
    )


def title(args: argparse.Namespace, runs: list[list[Row]]) -> str:
    """What a reader must know about a figure: data, network, recipe and how well it did."""
    accuracy, loss = (np.mean([rows[-1][name] for rows in runs]) for name in ("test_accuracy", "test_loss"))
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {args.seeds[0]}"
    return (
        f"{args.dataset}: test accuracy {accuracy:.1%}, test loss {loss:.2f}\n"
        f"depth {args.depth}, width {args.width}, learning rate {args.lr:g}, "
        f"batch size {args.batch_size}, {seeds}"
    )


def study(args: argparse.Namespace) -> int:
    """All seeds, the figure and the table; returns the exit status."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    dataset = data.load(args.dataset, args.data_dir)
    if args.probe_size > len(dataset.train_y):
        raise UsageError(
            f"argument --probe-size: expected at most {len(dataset.train_y)}, the training samples of "
            f"{args.dataset}, got {args.probe_size}"
        )
    environment = describe_environment(args.device, ah.build_info())
    with ExitStack() as stack:
        stores = {}
        for seed in args.seeds:
            store = RunStore(args.output / f"seed-{seed}", config(args, seed, dataset), environment, args.overwrite)
            stores[seed] = stack.enter_context(store)
            for note in store.notes:
                say(f"note: {note}")
        if all(store.finished for store in stores.values()):
            say(f"{args.output}: finished before; nothing to train, only the figure is drawn again")
        dataset = dataset.to(args.device)
        for seed, store in stores.items():
            if not store.finished and (stopped := train(store, seed, args, dataset)):
                command = shlex.join(["python", *(a for a in sys.argv if a != "--overwrite")])
                say(f"seed {seed}: stopped and saved in {store.folder}; to go on:\n  {command}")
                return 128 + stopped
        runs = [store.rows for store in stores.values()]
    paths = [args.output / f"alignment_hierarchy.{suffix}" for suffix in ("svg", "png")]
    figures.alignment_hierarchy(runs, title(args, runs), paths)
    print_table(runs)
    print(f"figure: {paths[-1]}")
    return 0


def config(args: argparse.Namespace, seed: int, dataset: data.Dataset) -> dict[str, Any]:
    """All that determines a run's numbers, up to the machine it runs on."""
    names = ("dataset", "depth", "width", "probe_size", "measurements", "precision")
    return {
        **{name: getattr(args, name) for name in names},
        **asdict(recipe(args, seed)),
        "data_digest": dataset.digest,
        "train_samples": len(dataset.train_y),
        "test_samples": len(dataset.test_y),
    }


def recipe(args: argparse.Namespace, seed: int) -> Recipe:
    """How one seed is trained."""
    names = ("lr", "momentum", "weight_decay", "batch_size", "epochs")
    return Recipe(**{name: getattr(args, name) for name in names}, seed=seed)


def train(store: RunStore, seed: int, args: argparse.Namespace, dataset: data.Dataset) -> int:
    """One seed; returns the signal that came, or 0."""
    model = feedforward(dataset.train_x.shape[1], args.width, args.depth, dataset.classes, seed).to(args.device)
    trainer = Trainer(model, dataset.train_x, dataset.train_y, recipe(args, seed))
    probe = data.stratified_subset(dataset.train_y, args.probe_size, seed).to(args.device)
    x, y = dataset.train_x[probe], dataset.train_y[probe]
    try:
        return run(store, trainer, seed, args, lambda: measure(trainer, dataset, x, y, args.precision))
    except DivergedError as error:
        raise DivergedError(f"seed {seed}: {error}; choose a smaller --lr and another --output") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; a mistake of the user's ends in one message and status 2, not in a traceback."""
    args = parse(arguments)
    try:
        return study(args)
    except (UsageError, StoreError, DivergedError, data.MissingDataError, data.CorruptDataError) as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
