"""The table of accuracies and peaks."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.common import figures
from experiments.common.store import Row


def summary(width: int, noise_scale: float, rows: Sequence[Row]) -> Row:
    """Make one line of the table: best accuracies over training (table 4), and the peak of alignment at both ends."""
    (peak_before, cka_before), (peak, cka) = figures.peak(rows[0]), figures.peak(rows[-1])
    return {
        "width": width,
        "noise_scale": noise_scale,
        "epochs": rows[-1]["epoch"],
        "best_train_accuracy": max(row["train_accuracy"] for row in rows),
        "best_test_accuracy": max(row["test_accuracy"] for row in rows),
        "peak_before": peak_before,
        "cka_before": cka_before,
        "peak": peak,
        "cka": cka,
    }


def print_table(lines: Sequence[Row]) -> None:
    """Print a line for each run."""
    names = (
        "width",
        "noise scale",
        "epochs",
        "best train",
        "best test",
        "peak before",
        "its CKA",
        "peak after",
        "its CKA",
    )
    print("".join(f"{name:>13}" for name in names))
    for line in lines:
        print(
            f"{line['width']:>13}{line['noise_scale']:>13g}{line['epochs']:>13g}{line['best_train_accuracy']:>13.1%}"
            f"{line['best_test_accuracy']:>13.1%}{line['peak_before']:>13g}{line['cka_before']:>13.4f}"
            f"{line['peak']:>13g}{line['cka']:>13.4f}"
        )
