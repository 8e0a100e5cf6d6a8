"""The table of accuracies and peaks."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.common import figures
from experiments.common.measuring import CENTERINGS, binomial_error
from experiments.common.store import Row


def summary(width: int, noise_scale: float, rows: Sequence[Row], test_samples: int) -> Row:
    """Make one line of the table.

    It has accuracies at the end, the best over training as in the paper's table 4, which are chosen on the very samples
    that they are counted on, and for each centering the peak of alignment and its height at both ends.
    """
    first, last = rows[0], rows[-1]
    line = {
        "width": width,
        "noise_scale": noise_scale,
        "epochs": last["epoch"],
        "train_accuracy": last["train_accuracy"],
        "test_accuracy": last["test_accuracy"],
        "binomial_error": binomial_error(last["test_accuracy"], test_samples),
        "best_train_accuracy": max(row["train_accuracy"] for row in rows),
        "best_test_accuracy": max(row["test_accuracy"] for row in rows),
    }
    for centering in CENTERINGS:
        for moment, row in (("_before", first), ("", last)):
            peak, cka = figures.peak(row, f"cka/{centering}")
            line |= {f"{centering}_peak{moment}": peak, f"{centering}_cka{moment}": cka}
    return line


def print_table(lines: Sequence[Row]) -> None:
    """Print a line for each run, and for each centering where its alignment peaks before and after training."""
    print(
        "".join(
            f"{name:>13}" for name in ("width", "noise scale", "epochs", "train", "test", "best train", "best test")
        )
    )
    for line in lines:
        accuracies = ("train_accuracy", "test_accuracy", "best_train_accuracy", "best_test_accuracy")
        print(
            f"{line['width']:>13}{line['noise_scale']:>13g}{line['epochs']:>13g}"
            + "".join(f"{line[name]:>13.1%}" for name in accuracies)
            + f"  ± {line['binomial_error']:.1%} (binomial)"
        )
        for centering in CENTERINGS:
            before, after = (
                f"layer {line[f'{centering}_peak{moment}']} ({line[f'{centering}_cka{moment}']:.4f})"
                for moment in ("_before", "")
            )
            print(f"  {centering.replace('_', ' ')}: peak at {before} before training, {after} after")
