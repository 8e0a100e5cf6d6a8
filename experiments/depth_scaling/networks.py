"""The networks of different depths, how each is trained, and the paper's settings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from experiments.common import command_line


@dataclass(frozen=True)
class Variant:
    """A factor of all learning rates, and a batch size."""

    lr_factor: float
    batch_size: int

    def __repr__(self) -> str:
        """The variant as it is given on the command line."""
        return f"{self.lr_factor:g}:{self.batch_size}"

    @property
    def name(self) -> str:
        """The variant in names of files."""
        factor = "" if self.lr_factor == 1 else f"rates{self.lr_factor:g}-"
        return f"{factor}batch{self.batch_size}"

    @property
    def label(self) -> str:
        """The text for figures."""
        rates = "" if self.lr_factor == 1 else f"learning rates × {self.lr_factor:g}, "
        return f"{rates}batch size {self.batch_size}"


@dataclass(frozen=True)
class Network:
    """One network and how it is trained; the learning rate is the one that it gets, variant included."""

    depth: int
    variant: Variant
    lr: float
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's folder, which is printed with all messages."""
        return f"depth{self.depth}-lr{self.lr:g}-batch{self.variant.batch_size}-seed{self.seed}"


def variant(text: str) -> Variant:
    """An argparse type: FACTOR:BATCH."""
    factor, _, batch = text.partition(":")
    try:
        return Variant(command_line.positive(factor), command_line.whole(1)(batch))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"expected a factor above 0 of all learning rates and a batch size of at least 1, F:B, got {text!r}"
        ) from error


# Depths, widths, learning rates and epochs are those of the paper's tables 1 to 3; the rest is how its authors' code
# trains and measures. The seeds are ours: the code has an option for the number of networks and no value.
PAPER = {
    "depths": list(range(10, 101, 10)),
    "seeds": [0, 1, 2, 3, 4],
    "seed_counts": [5, 5, 5, 5, 3, 3, 1, 1, 1, 1],
    "variants": [Variant(1, 200)],
    "bias": True,
    "stop_loss": 0.1,
    "probe_size": 200,
    "measurements": 20,
}
PRESETS: dict[str, dict[str, Any]] = {
    "cifar10": {
        **PAPER,
        "dataset": "cifar10",
        "augment": True,
        "width": 256,
        "lrs": [0.005, 0.003, 0.003, 0.001, 0.001, 0.0007, 0.0005, 0.0005, 0.0001, 0.0001],
        "epochs": [100, 100, 150, 200, 250, 300, 300, 500, 500, 700],
    },
    "fashion-mnist": {
        **PAPER,
        "dataset": "fashion-mnist",
        "width": 100,
        "lrs": [0.003, 0.004, 0.004, 0.002, 0.001, 0.0007, 0.0003, 0.0002, 0.0001, 0.00007],
        "epochs": [100, 100, 100, 100, 100, 100, 200, 200, 300, 300],
    },
    "mnist": {
        **PAPER,
        "dataset": "mnist",
        "width": 100,
        "lrs": [0.003, 0.003, 0.003, 0.002, 0.001, 0.0007, 0.0002, 0.0001, 0.0002, 0.0001],
        "epochs": [100, 100, 100, 100, 100, 100, 200, 200, 300, 300],
    },
}


def networks(args: argparse.Namespace) -> list[Network]:
    """The networks in the order in which one process trains them: variant by variant, the longest run first."""

    def of_each(values: list[Any]) -> list[Any]:
        return values if len(values) > 1 else values * len(args.depths)

    seed_counts = args.seed_counts or [len(args.seeds)]
    found = [
        Network(depth, of, lr * of.lr_factor, max(1, round(epochs * args.epoch_fraction)), seed)
        for of in args.variants
        for depth, lr, epochs, seeds in zip(
            args.depths, *map(of_each, (args.lrs, args.epochs, seed_counts)), strict=True
        )
        for seed in args.seeds[:seeds]
    ]
    return sorted(found, key=lambda one: (args.variants.index(one.variant), -one.depth * one.epochs))
