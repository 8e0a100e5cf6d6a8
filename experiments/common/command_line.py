"""What the command lines of the studies share: types that check their values, options, and checks of the whole."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from experiments.common import data, models
from experiments.common.training import Recipe

DEFAULTS = Recipe()
TWO_PROBES = (
    "training samples and as many test samples to measure on, stratified, drawn per seed; time grows as n squared"
)


class UsageError(ValueError):
    """A command-line value that only the data can refute."""


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """States the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


# ---- types


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


positive = real("a number above 0", lambda value: value > 0)
fraction = real("a number in [0, 1)", lambda value: 0 <= value < 1)
seed = whole(0, 2**63 - 1)


# ---- options

OPTIONS: dict[str, dict[str, Any]] = {
    "--dataset": {"choices": data.NAMES, "default": "digits", "help": "what to train on"},
    "--data-dir": {
        "type": Path,
        "metavar": "D",
        "help": "folder that holds DATASET/ in its published format (digits: none)",
    },
    "--train-size": {
        "type": whole(2),
        "metavar": "N",
        "help": "train on a stratified subset (default: on all)",
    },
    "--test-size": {"type": whole(1), "metavar": "n", "help": "test samples, stratified (default: all)"},
    "--model": {"choices": models.MODELS, "default": "feedforward", "help": "what to train"},
    "--depth": {"type": whole(1), "default": 10, "metavar": "L", "help": "linear layers"},
    "--width": {"type": whole(1), "default": 256, "metavar": "N", "help": "units of a hidden layer"},
    "--width-factor": {
        "type": positive,
        "default": 0.25,
        "metavar": "W",
        "help": "of all channel numbers (vgg19, resnet18)",
    },
    "--bias": {
        "action": argparse.BooleanOptionalAction,
        "default": False,
        "help": "train biases, which are zero at the start",
    },
    "--initialisation": {
        "choices": models.INITIALISATIONS,
        "default": "kaiming",
        "help": "of the weights: variance 2 / fan-in (kaiming) or 2 / (fan-in + fan-out) (xavier)",
    },
    "--lr": {"type": positive, "default": DEFAULTS.lr, "help": "learning rate of SGD"},
    "--momentum": {"type": fraction, "default": DEFAULTS.momentum, "help": "momentum of SGD"},
    "--weight-decay": {
        "type": real("a number of at least 0", lambda value: value >= 0),
        "default": DEFAULTS.weight_decay,
        "help": "L2 penalty of SGD",
    },
    "--batch-size": {"type": whole(1), "default": DEFAULTS.batch_size, "help": "samples in a minibatch"},
    "--epochs": {"type": whole(1), "default": DEFAULTS.epochs, "help": "passes over the training set"},
    "--stop-loss": {
        "type": positive,
        "metavar": "LOSS",
        "help": "end where the running average of minibatch losses is below it at two epoch ends in a row",
    },
    "--augment": {
        "action": argparse.BooleanOptionalAction,
        "default": DEFAULTS.augment,
        "help": "train on random crops and flips (CIFAR sets)",
    },
    "--probe-size": {
        "type": whole(2),
        "default": 256,
        "metavar": "n",
        "help": "training samples to measure on, stratified, drawn per seed; time grows as n squared",
    },
    "--measurements": {"type": whole(2), "default": 25, "help": "how many, log-spaced, first and last included"},
    "--precision": {"choices": ("highest", "high", "medium"), "default": "highest", "help": "of the measurement"},
    "--seed": {"type": seed, "default": 0, "help": "of weights, batches, subsets and label noise"},
    "--output": {"type": Path},
    "--overwrite": {"action": "store_true"},
    "--checkpoint-every": {
        "type": whole(1),
        "default": 500,
        "metavar": "K",
        "help": "iterations between checkpoints",
    },
    "--threads": {"type": whole(1, 4096), "default": None, "help": "CPU threads (default: torch's choice)"},
    "--device": {"type": device, "default": "cpu", "help": "where to train and measure"},
}


def command_line(command: str, description: str | None) -> argparse.ArgumentParser:
    """A parser without options of a command, described by the first line of a docstring."""
    return argparse.ArgumentParser(
        prog=command,
        description=description.partition("\n")[0] if description else None,
        formatter_class=Help,
        allow_abbrev=False,
    )


def add(p: argparse.ArgumentParser, *names: str, **changes: Any) -> None:
    """Add shared options in this order; ``changes`` replace what argparse is told about them."""
    for name in names:
        p.add_argument(name, **OPTIONS[name] | changes)


def parse(
    p: argparse.ArgumentParser, presets: Mapping[str, Mapping[str, Any]], arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command line with the option --preset: defaults by name, which other options override.

    Args:
        p: Gets the option, and the chosen preset's defaults (also in its help).
        presets: By the name of the preset, values of options by their names in the namespace.
        arguments: The command line; by default the program's.
    """
    kind = {"choices": tuple(presets), "help": "settings of the paper; other options given count more"}
    p.add_argument("--preset", **kind)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=p.prog, usage=p.format_usage()[7:].strip())
    first.add_argument("--preset", **kind)
    chosen = first.parse_known_args(arguments)[0].preset
    if chosen is not None:
        p.set_defaults(**presets[chosen])
    return p.parse_args(arguments)


# ---- checks


def require_distinct(p: argparse.ArgumentParser, args: argparse.Namespace, *options: str) -> None:
    """Exit with a message where an option of several values has one twice."""
    for option in options:
        values = getattr(args, option.removeprefix("--").replace("-", "_"))
        if len(set(values)) < len(values):
            kinds = {str: "names", int: "numbers", float: "numbers"}
            expected = kinds.get(type(values[0]), "values")
            p.error(f"argument {option}: expected distinct {expected}, got {' '.join(map(str, values))}")


def require_data_dir(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where the data set needs a folder and none is given."""
    if args.dataset != "digits" and args.data_dir is None:
        p.error(f"argument --data-dir: expected the folder that holds {args.dataset}/, got none")


def require_colour(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where images without colours are to be cropped and flipped: digits must not be mirrored."""
    if args.augment and args.dataset not in data.CIFAR_FOLDERS:
        expected = " or ".join(data.CIFAR_FOLDERS)
        p.error(f"argument --augment: expected --dataset {expected}, got {args.dataset}")


def training_images(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """What is trained on in words, for the titles of studies that have --augment."""
    cropped = ", cropped and flipped" if args.augment else ""
    return f"{args.dataset}, {len(dataset.train_y):,} training images{cropped}"


def require_feedforward(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where an image network is to have other biases or weights than its own."""
    if args.model == "feedforward":
        return
    for option in ("bias", "initialisation"):
        if getattr(args, option) != OPTIONS[f"--{option}"]["default"]:
            p.error(f"argument --{option}: expected --model feedforward, got {args.model}")


def require_samples(args: argparse.Namespace, dataset: data.Dataset, option: str, value: int | None) -> None:
    """Raise UsageError where an option asks for more training samples than there are."""
    if value is not None and value > len(dataset.train_y):
        raise UsageError(
            f"argument {option}: expected at most {len(dataset.train_y)}, the training samples of "
            f"{args.dataset}, got {value}"
        )


def require_probes(args: argparse.Namespace, dataset: data.Dataset) -> None:
    """Raise UsageError where --probe-size asks for more training samples, or test samples, than there are."""
    require_samples(args, dataset, "--probe-size", args.probe_size)
    if args.probe_size > len(dataset.test_y):
        raise UsageError(
            f"argument --probe-size: expected at most {len(dataset.test_y)}, the test samples of {args.dataset}, "
            f"got {args.probe_size}"
        )


# ---- what the options say


def load(args: argparse.Namespace, subset_seed: int | None = None) -> data.Dataset:
    """Load the data set with as many training samples as were asked for, which are enough for the probe.

    Args:
        args: The parsed command line.
        subset_seed: The seed of the choice of training samples; by default --seed.
    """
    dataset = data.load(args.dataset, args.data_dir)
    require_samples(args, dataset, "--train-size", args.train_size)
    if args.train_size is not None:
        dataset = data.training_subset(dataset, args.train_size, args.seed if subset_seed is None else subset_seed)
    require_samples(args, dataset, "--probe-size", args.probe_size)
    return dataset


def test_size(args: argparse.Namespace, dataset: data.Dataset) -> int:
    """How many test samples were asked for; all of them by default."""
    most = len(dataset.test_y)
    if args.test_size is not None and args.test_size > most:
        raise UsageError(
            f"argument --test-size: expected at most {most}, the test samples of {args.dataset}, got {args.test_size}"
        )
    return args.test_size or most


def recipe(args: argparse.Namespace, **changes: Any) -> Recipe:
    """How to train: the options of a recipe's names, with changes, and defaults for the rest."""
    given = {field.name: getattr(args, field.name) for field in fields(Recipe) if hasattr(args, field.name)}
    return Recipe(**given | changes)


def values(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The values of these options by name; with "model" come the options that it is made of."""
    found: dict[str, Any] = {}
    for name in names:
        found[name] = getattr(args, name)
        if name == "model":
            found |= {option: getattr(args, option) for option in models.options_of(args)}
    return found
