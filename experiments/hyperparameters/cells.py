"""The cells of a grid of hyperparameters, what became of them, and the table of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, spearmanr

from experiments.common.figures import Array, mean_over_runs, peak_of, table
from experiments.common.measuring import CENTERING_NAMES, CENTERINGS, binomial_error
from experiments.common.store import Row
from experiments.common.training import OPTIMIZERS

PROBES = ("train", "test")


@dataclass(frozen=True)
class Cell:
    """One choice of hyperparameters."""

    optimizer: str
    lr: float
    batch_size: int

    @property
    def name(self) -> str:
        """The name of the cell in tables."""
        return f"{self.optimizer}-lr{self.lr}-batch{self.batch_size}"

    def run(self, seed: int) -> str:
        """The name of the folder of its run with a seed, which is printed with all messages."""
        return f"{self.name}-seed{seed}"


@dataclass(frozen=True)
class Result:
    """The measurements of a cell: for each seed a row before training and one at its end, as far as training got."""

    cell: Cell
    runs: list[list[Row]]

    @property
    def begun(self) -> bool:
        """Whether there is any measurement."""
        return any(self.runs)

    @property
    def finished(self) -> bool:
        """Whether the cell needs no more training."""
        return all(len(rows) == 2 for rows in self.runs)

    @property
    def diverged(self) -> bool:
        """Whether a run ended because a loss was no longer finite."""
        return self.finished and not math.isfinite(self.mean("train_loss"))

    @property
    def trained(self) -> bool:
        """Whether all its runs have numbers at their end."""
        return self.finished and not self.diverged

    @property
    def at_limit(self) -> int:
        """The number of runs that ended at the epoch limit, not at the loss that was to end them."""
        return sum(rows[-1]["loss_reached"] == 0 for rows in self.runs)

    @property
    def reached(self) -> bool:
        """Whether all its runs ended at that loss."""
        return self.trained and self.at_limit == 0

    def mean(self, name: str) -> float:
        """The mean over runs of a column at their end."""
        return float(np.mean([rows[-1][name] for rows in self.runs]))

    @property
    def gap(self) -> float:
        """The generalisation gap: test loss minus train loss, in nats."""
        return self.mean("test_loss") - self.mean("train_loss")

    def alignments(self, row: int, centering: str, probe: str = "train") -> Array:
        """The alignment by layer of every run on a probe, [seeds, L]; row 0 is before training, row 1 at its end."""
        columns = f"cka/{probe}/{centering}"
        values: Array = table(self.runs, columns, columns)[:, row]
        return values

    def peak(self, centering: str, probe: str = "train") -> tuple[int, float]:
        """The peak at the end of training of the mean over runs; see ``figures.peak_of``."""
        return peak_of(mean_over_runs(self.alignments(-1, centering, probe)))


def summary(of: Result, test_samples: int) -> dict[str, Any]:
    """Make the line of a trained cell in the table: means over seeds, and for each centering the peak of their mean."""
    names = ("epoch", "train_loss", "test_loss", "train_accuracy", "test_accuracy")
    line: dict[str, Any] = {**asdict(of.cell), "seeds": len(of.runs), "at_epoch_limit": of.at_limit}
    line |= {name: of.mean(name) for name in names}
    line["binomial_error"] = binomial_error(line["test_accuracy"], test_samples)
    for probe in PROBES:
        for centering in CENTERINGS:
            line[f"{probe}_{centering}_peak"], line[f"{probe}_{centering}_cka"] = of.peak(centering, probe)
    return line


def print_table(found: Sequence[Result], test_samples: int) -> None:
    """Print one line per cell, and how the peak's alignment goes with losses and accuracy."""
    columns = (
        "epochs",
        "train loss",
        "test loss",
        "gap",
        "train acc.",
        "test acc.",
        "binomial",
        "peak layer",
        "alignment",
    )
    columns += "global peak", "its CKA"
    width = max(len(one.cell.name) for one in found)
    print(f"{'cell':<{width}}" + "".join(f"  {column:>11}" for column in columns) + "  ended")
    for one in found:
        values, ended = ["-"] * len(columns), "not finished" if one.begun else "not begun"
        if one.finished:
            ended = "diverged"
            values[0] = f"{one.mean('epoch'):.3g}"
        if one.trained:
            ended = "at the loss" if one.reached else f"{one.at_limit} of {len(one.runs)} at the epoch limit"
            line = summary(one, test_samples)
            values[1:4] = (f"{value:.3f}" for value in (line["train_loss"], line["test_loss"], one.gap))
            values[4:7] = (f"{line[name]:.1%}" for name in ("train_accuracy", "test_accuracy", "binomial_error"))
            values[7:] = (
                cell
                for centering in CENTERINGS
                for cell in (str(line[f"train_{centering}_peak"] or "-"), f"{line[f'train_{centering}_cka']:.4f}")
            )
        print(f"{one.cell.name:<{width}}" + "".join(f"  {value:>11}" for value in values) + f"  {ended}")
    reached, trained = [one for one in found if one.reached], [one for one in found if one.trained]
    for centering in CENTERINGS:
        _print_correlations(reached, centering, "the cells that reached the loss in every run")
        if len(reached) < len(trained):
            _print_correlations(trained, centering, "all trained cells, whose training losses differ")


def _print_correlations(cells: Sequence[Result], centering: str, which: str) -> None:
    """Print rank correlations over cells for each optimizer with three or more of them, and for all."""
    peaked = [one for one in cells if one.peak(centering)[0]]
    groups = {name: [one for one in peaked if one.cell.optimizer == name] for name in OPTIMIZERS}
    groups = {name: members for name, members in groups.items() if len(members) > 2}
    if len(groups) > 1:
        groups["all"] = peaked
    if groups:
        print(
            f"rank correlation of the peak's alignment, {CENTERING_NAMES[centering]}, over {which} (95% intervals, "
            "where there are four cells):"
        )
    for name, members in groups.items():
        peaks = [one.peak(centering)[1] for one in members]
        with_each = {
            "the test loss": [one.mean("test_loss") for one in members],
            "the gap": [one.gap for one in members],
            "the test accuracy": [one.mean("test_accuracy") for one in members],
        }
        said = (f"{rank_correlation(peaks, values)} with {what}" for what, values in with_each.items())
        print(f"  {name} ({len(members)} cells): {', '.join(said)}")


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation with its 95% interval; nan where all values of one side are the same.

    The interval is Fisher's with the standard error of Bonett and Wright (Psychometrika 65, 2000). There is none for
    fewer than four pairs, and none where the order is the same or the opposite.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if math.isnan(self.low) else f" ({self.low:.2f} to {self.high:.2f})")


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> RankCorrelation:
    """The rank correlation of pairs of numbers."""
    if len(set(a)) == 1 or len(set(b)) == 1:  # of which scipy warns
        return RankCorrelation(math.nan)
    value = float(spearmanr(a, b).statistic)
    if len(a) < 4 or abs(value) > 1 - 1e-9:
        return RankCorrelation(value)
    reach = float(norm.ppf(0.975)) * math.sqrt((1 + value**2 / 2) / (len(a) - 3))
    return RankCorrelation(value, math.tanh(math.atanh(value) - reach), math.tanh(math.atanh(value) + reach))
