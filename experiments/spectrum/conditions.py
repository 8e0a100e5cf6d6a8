"""The conditions that networks are trained under, as the command line takes them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from experiments.common import command_line


@dataclass(frozen=True)
class Condition:
    """A learning rate, and the fraction of the training labels that is drawn anew."""

    lr: float
    noise: float

    def __str__(self) -> str:
        """The text that the command line takes."""
        return f"{self.lr:g}" + (f":{self.noise:g}" if self.noise else "")

    @property
    def name(self) -> str:
        """The name of the run's folder, which is printed with all messages."""
        return f"lr{self.lr}" + (f"-noise{self.noise}" if self.noise else "")

    @property
    def label(self) -> str:
        """The text for figures."""
        return f"learning rate {self.lr:g}" + (f", {self.noise:.0%} random labels" if self.noise else "")


def condition(text: str) -> Condition:
    """An argparse type: LR or LR:NOISE."""
    lr, colon, noise = text.partition(":")
    try:
        return Condition(command_line.positive(lr), command_line.fraction(noise) if colon else 0.0)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"expected a learning rate above 0, or with a fraction in [0, 1) of random labels LR:F, got {text!r}"
        ) from error
