"""The cells of a grid of hyperparameters, what became of them, and the table of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from experiments.common.figures import Array, peak, table
from experiments.common.store import Row
from experiments.common.training import OPTIMIZERS


@dataclass(frozen=True)
class Cell:
    """One choice of hyperparameters."""

    optimizer: str
    lr: float
    batch_size: int

    @property
    def name(self) -> str:
        """The name of the run's folder, which is printed with all messages."""
        return f"{self.optimizer}-lr{self.lr}-batch{self.batch_size}"


@dataclass(frozen=True)
class Result:
    """The measurements of a cell: one row before training and one at its end, as far as training got."""

    cell: Cell
    rows: list[Row]

    @property
    def finished(self) -> bool:
        """Whether the cell needs no more training."""
        return len(self.rows) == 2

    @property
    def diverged(self) -> bool:
        """Whether it ended because a loss was no longer finite."""
        return self.finished and not math.isfinite(self.rows[-1]["train_loss"])

    @property
    def trained(self) -> bool:
        """Whether it has numbers at its end."""
        return self.finished and not self.diverged

    def reached(self, target: float) -> bool:
        """Whether training ended at the loss target, not at the epoch limit."""
        return self.trained and self.rows[-1]["train_loss"] <= target

    @property
    def gap(self) -> float:
        """The generalisation gap: test loss minus train loss, in nats."""
        return self.rows[-1]["test_loss"] - self.rows[-1]["train_loss"]

    def alignment(self, row: int) -> Array:
        """The alignment by layer, [L]; row 0 is before training, row 1 at its end."""
        values: Array = table([self.rows], "cka")[0, row]
        return values

    @property
    def peak(self) -> tuple[int, float]:
        """The peak at the end of training; see ``figures.peak``."""
        return peak(self.rows[1])


def print_table(found: Sequence[Result], target: float) -> None:
    """Print one line per cell, and how the peak's alignment goes with losses and accuracy."""
    columns = "epochs", "train loss", "test loss", "gap", "train acc.", "test acc.", "peak layer", "alignment"
    width = max(len(one.cell.name) for one in found)
    print(f"{'cell':<{width}}" + "".join(f"  {column:>10}" for column in columns) + "  ended")
    for one in found:
        values, ended = ["-"] * len(columns), "not finished" if one.rows else "not begun"
        if one.finished:
            ended = "diverged"
            values[0] = f"{one.rows[-1]['epoch']:.3g}"
        if one.trained:
            ended = "loss target" if one.reached(target) else "epoch limit"
            last, (layer, alignment) = one.rows[-1], one.peak
            losses = last["train_loss"], last["test_loss"], one.gap
            values[1:4] = (f"{value:.3f}" for value in losses)
            values[4:6] = (f"{last[name]:.1%}" for name in ("train_accuracy", "test_accuracy"))
            values[6:] = str(layer) if layer else "-", f"{alignment:.4f}"
        print(f"{one.cell.name:<{width}}" + "".join(f"  {value:>10}" for value in values) + f"  {ended}")
    _print_correlations([one for one in found if one.reached(target) and one.peak[0]])


def _print_correlations(alike: Sequence[Result]) -> None:
    """Print rank correlations over cells of one training loss, for each optimizer with three or more and for all."""
    groups = {name: [one for one in alike if one.cell.optimizer == name] for name in OPTIMIZERS}
    groups = {name: members for name, members in groups.items() if len(members) > 2}
    if len(groups) > 1:
        groups["all"] = list(alike)
    if groups:
        print("rank correlation of the peak's alignment, over the cells that reached the loss target:")
    for name, members in groups.items():
        peaks, last = [one.peak[1] for one in members], [one.rows[-1] for one in members]
        loss, gap, accuracy = (
            rank_correlation(peaks, values)
            for values in (
                [row["test_loss"] for row in last],
                [one.gap for one in members],
                [row["test_accuracy"] for row in last],
            )
        )
        print(
            f"  {name} ({len(members)} cells): {loss:.2f} with the test loss, {gap:.2f} with the gap, "
            f"{accuracy:.2f} with the test accuracy"
        )


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; nan where all values of one side are the same."""
    if len(set(a)) == 1 or len(set(b)) == 1:  # of which scipy warns
        return math.nan
    return float(spearmanr(a, b).statistic)
