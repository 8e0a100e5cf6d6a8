"""The table of losses, accuracies and peaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.common import figures
from experiments.common.store import Row


def summary(method: str, width: int, rows: Sequence[Row]) -> dict[str, Any]:
    """Make one line of the table."""
    last, (peak_before, cka_before), (peak, cka) = rows[-1], *map(figures.peak, rows)
    return {
        "method": method,
        "width": width,
        "epochs": last["epoch"],
        "train_loss": last["train_loss"],
        "test_loss": last["test_loss"],
        "train_accuracy": last["train_accuracy"],
        "test_accuracy": last["test_accuracy"],
        "peak_before": peak_before,
        "cka_before": cka_before,
        "peak": peak,
        "cka": cka,
    }


def print_table(lines: Sequence[dict[str, Any]]) -> None:
    """Print a line for each network."""
    names = (
        "width",
        "epochs",
        "train loss",
        "train acc.",
        "test acc.",
        "peak before",
        "its CKA",
        "peak after",
        "its CKA",
    )
    print(f"{'method':<10}" + "".join(f"{name:>13}" for name in names))
    for line in lines:
        print(
            f"{line['method']:<10}{line['width']:>13}{line['epochs']:>13g}{line['train_loss']:>13.3f}"
            f"{line['train_accuracy']:>13.1%}{line['test_accuracy']:>13.1%}{line['peak_before']:>13g}"
            f"{line['cka_before']:>13.4f}{line['peak']:>13g}{line['cka']:>13.4f}"
        )
