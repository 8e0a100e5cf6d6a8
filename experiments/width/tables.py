"""The table of losses, peaks and changes of weights by width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.common import figures
from experiments.common.store import Row
from experiments.width.figure import trained


def summary(width: int, exponent: float, lr: float, rows: Sequence[Row]) -> Row:
    """Make one line of the table."""
    last, result = rows[-1], trained(rows)
    peak, cka = figures.peak(last)
    return {
        "width": width,
        "exponent": exponent,
        "lr": lr,
        "train_loss": last["train_loss"],
        "test_loss": last["test_loss"],
        "train_accuracy": last["train_accuracy"],
        "test_accuracy": last["test_accuracy"],
        "peak": peak,
        "cka": cka,
        "cka_before": float(np.nanmax(result.before)),
        "moved": float(np.mean(result.moved)),
    }


def print_table(lines: Sequence[Row]) -> None:
    """Print a line for each network."""
    names = ("width", "exponent", "lr", "train loss", "test acc.", "peak", "alignment", "before", "moved")
    print("".join(f"{name:>11}" for name in names))
    for line in lines:
        print(
            f"{line['width']:>11}{line['exponent']:>11g}{line['lr']:>11.2g}{line['train_loss']:>11.3f}"
            f"{line['test_accuracy']:>11.1%}{line['peak']:>11}{line['cka']:>11.4f}{line['cka_before']:>11.4f}"
            f"{line['moved']:>11.4f}"
        )
