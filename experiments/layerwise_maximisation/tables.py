"""The table of losses, accuracies and peaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.common import figures
from experiments.common.measuring import CENTERINGS, binomial_error
from experiments.common.store import Row


def summary(method: str, width: int, rows: Sequence[Row], test_samples: int) -> dict[str, Any]:
    """Make one line of the table; peaks and the greatest alignments have columns for each centering."""
    last = rows[-1]
    line = {
        "method": method,
        "width": width,
        "epochs": last["epoch"],
        **{name: last[name] for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy")},
        "binomial_error": binomial_error(last["test_accuracy"], test_samples),
    }
    for centering in CENTERINGS:
        for moment, row in (("_before", rows[0]), ("", last)):
            peak, cka = figures.peak(row, f"cka/train/{centering}")
            line |= {f"{centering}_peak{moment}": peak, f"{centering}_cka{moment}": cka}
    return line


def print_table(lines: Sequence[dict[str, Any]]) -> None:
    """Print a line for each network, and for each centering where its alignment peaks before and after training."""
    names = ("width", "epochs", "train loss", "train acc.", "test acc.")
    print(f"{'method':<10}" + "".join(f"{name:>12}" for name in names))
    for line in lines:
        print(
            f"{line['method']:<10}{line['width']:>12}{line['epochs']:>12g}{line['train_loss']:>12.3f}"
            f"{line['train_accuracy']:>12.1%}{line['test_accuracy']:>12.1%} ± {line['binomial_error']:.1%} (binomial)"
        )
        for centering in CENTERINGS:
            before, after = (
                f"layer {line[f'{centering}_peak{moment}']} ({line[f'{centering}_cka{moment}']:.4f})"
                for moment in ("_before", "")
            )
            print(f"  {centering.replace('_', ' ')}: peak at {before} before training, {after} after")
