"""The paper's figures 5 and 6: collinearity, evolution of tangent features, and eigenvectors of the output Hessian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.figures import (
    Array,
    column,
    iteration_axis,
    layer_axis,
    layer_bar,
    layer_colours,
    layer_names,
    mean_over_runs,
    plot_range,
    saved,
    table,
)
from experiments.common.store import Row

# What changes the features, by its name in columns, with what a reader sees: the step that training takes, with its
# minibatch and momentum; one along the probe's gradient at the same learning rate; and the limit of this one for small
# learning rates, in which no ReLU switches.
CHANGES = {"step": "training step", "full_batch": "full-batch step", "infinitesimal": "infinitesimal step"}
STYLES = {"step": ("#0072B2", "o"), "full_batch": ("#D55E00", "s"), "infinitesimal": ("#009E73", "^")}  # Okabe-Ito
MEAN, WEIGHTED = ("#0072B2", "o"), ("#D55E00", "s")
BAND = (10, 90)  # percentiles of the eigenvectors
GREY = "0.45"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Moment:
    """The eigenvectors of one moment of training.

    Attributes:
        row: The measurement of that moment.
        layers: The linear and convolutional layers in forward order.
        table: A line for each eigenvector, with the greatest absolute eigenvalue first.
    """

    row: Row
    layers: list[str]
    table: list[Row]

    @property
    def when(self) -> str:
        """The iteration and the epoch in words."""
        return f"iteration {self.row['iteration']:,.0f} (epoch {self.row['epoch']:.3g})"

    @property
    def eigenvalues(self) -> Array:
        """The eigenvalues, [k]."""
        return self._column("eigenvalue")

    @property
    def energies(self) -> Array:
        """The energy of every eigenvector in each layer, [k, L]; sums to 1 if no other modules have parameters."""
        return np.stack([self._column(f"energy/{layer}") for layer in self.layers], axis=1)

    @property
    def weighted_energies(self) -> Array:
        """The mean energy over the eigenvectors, weighted by absolute eigenvalue, [L]."""
        mean: Array = np.average(self.energies, axis=0, weights=abs(self.eigenvalues))
        return mean

    def coordinates(self, change: str) -> Array:
        """The coordinates of a change of the features, as a unit vector, in the basis of eigenvectors, [k]."""
        return self._column(f"coordinate/{change}")

    def correlation(self, change: str) -> float:
        """Cosine of a change and the predicted one after projection onto the eigenvectors.

        Pearson's correlation of coordinates would depend on the signs of the eigenvectors, which are arbitrary.
        """
        a, b = self.coordinates(change), self.coordinates("predicted")
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    def _column(self, name: str) -> Array:
        return np.array([line[name] for line in self.table])


def moments(rows: Sequence[Row], eigenvectors: Sequence[Row]) -> list[Moment]:
    """The moments in a table of eigenvectors, which has a column iteration, with their measurements."""
    by_iteration = {row["iteration"]: row for row in rows}
    return [
        Moment(by_iteration[iteration], layer_names(rows), list(lines))
        for iteration, lines in groupby(eigenvectors, lambda line: line["iteration"])
    ]


def early_training(runs: Sequence[Sequence[Row]], found: Sequence[Moment], title: str, path: Path) -> None:
    """Draw collinearity, accuracy, correlations and alignments along training, and eigenvectors of each moment below.

    Several runs give their mean and a band from the least to the greatest; eigenvectors are those of the first.

    Args:
        runs: For each seed, its measurements in order, with columns iteration, epoch, test_accuracy, collinearity,
            <change>_correlation for every change, and cka/<layer>; a nan leaves a gap.
        found: Moments with eigenvectors; with none there is only the first line of panels.
        title: The title of the figure.
        path: The file to write.
    """
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with saved(path, (max(16, 4.7 * len(found)), 12.2 if found else 4.7), style) as figure:
        figure.suptitle(title, fontsize=12)
        parts = figure.subfigures(3 if found else 1, 1, squeeze=False, hspace=0.03)[:, 0]
        along = parts[0].subplots(1, 4)
        _draw_collinearity(along[0], runs)
        _draw_accuracy(along[1], runs)
        _draw_correlations(along[2], runs)
        _draw_alignments(parts[0], along[3], runs, found)
        _legend_below(parts[0], along[2])
        panels = list(along)
        if found:
            energies = _draw_row(parts[1], found, _draw_energies)
            energies[0].set_ylim(bottom=0)  # all panels, now that each is drawn
            panels += [*energies, *_draw_row(parts[2], found, _draw_coordinates)]
        for letter, ax in zip(LETTERS, panels, strict=False):
            ax.set_title(f"({letter}) {ax.get_title()}", fontsize=11)


# ---- along training


def _iterations(ax: Axes, runs: Sequence[Sequence[Row]]) -> Array:
    iterations = column(runs, "iteration")[0]
    iteration_axis(ax, int(iterations[-1]))
    return iterations


def _mark_first_epoch(ax: Axes, runs: Sequence[Sequence[Row]]) -> None:
    last = runs[0][-1]
    ax.axvline(last["iteration"] / last["epoch"], color=GREY, ls=":", lw=1.4, label="end of the first epoch")


def _draw_collinearity(ax: Axes, runs: Sequence[Sequence[Row]]) -> None:
    values = column(runs, "collinearity")
    plot_range(ax, _iterations(ax, runs), values, color="black", marker="o", ms=4, lw=1.8)
    _mark_first_epoch(ax, runs)
    ax.set_ylim(min(0.0, np.nanmin(values)), 1.05)
    ax.set_ylabel(r"−corr($w$, ỹ)")
    ax.set_title("loss gradient $w$ against labels ỹ")


def _draw_accuracy(ax: Axes, runs: Sequence[Sequence[Row]]) -> None:
    values = 100 * column(runs, "test_accuracy")
    plot_range(ax, _iterations(ax, runs), values, color="black", marker="o", ms=4, lw=1.8)
    _mark_first_epoch(ax, runs)
    ax.set_ylim(0, 105)
    ax.set_ylabel("test accuracy (%)")
    ax.set_title("test accuracy")


def _draw_correlations(ax: Axes, runs: Sequence[Sequence[Row]]) -> None:
    iterations = _iterations(ax, runs)
    for name, (colour, marker) in STYLES.items():
        values = column(runs, f"{name}_correlation")
        plot_range(ax, iterations, values, color=colour, marker=marker, ms=4, lw=1.8, label=CHANGES[name])
    _mark_first_epoch(ax, runs)
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set_ylim(-1.05, 1.05)
    ax.set_ylabel("correlation (cosine)")
    ax.set_title(r"change of $\Psi$ỹ against $-H_w\Psi$ỹ")


def _draw_alignments(figure: Figure, ax: Axes, runs: Sequence[Sequence[Row]], found: Sequence[Moment]) -> None:
    iterations = _iterations(ax, runs)
    alignment = mean_over_runs(table(runs, "cka"))
    colours = layer_colours(alignment.shape[1])
    for values, colour in zip(alignment.T, colours, strict=True):
        ax.plot(iterations, values, color=colour, lw=1.6, marker="o", ms=2.5)
    for moment in found:
        ax.axvline(moment.row["iteration"], color="black", ls="--", lw=1)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("alignment (CKA), each output centered")
    ax.set_title("alignment" + (", and the moments below (dashed)" if found else ""))
    layer_bar(figure, ax, len(colours), "layer" + (f" (mean of {len(runs)} seeds)" if len(runs) > 1 else ""))


# ---- eigenvectors


def _draw_row(figure: Figure, found: Sequence[Moment], draw: Callable[[Axes, Moment], None]) -> list[Axes]:
    """Draw a panel for each moment, all of one scale, and the legend of the first below."""
    axes = list(figure.subplots(1, len(found), squeeze=False, sharex=True, sharey=True)[0])
    for ax, moment in zip(axes, found, strict=True):
        draw(ax, moment)
        ax.tick_params(labelleft=True)
    _legend_below(figure, axes[0])
    return axes


def _legend_below(figure: Figure, ax: Axes) -> None:
    """Show the legend of one panel below all of them."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)


def _draw_energies(ax: Axes, moment: Moment) -> None:
    energies, values = moment.energies, abs(moment.eigenvalues)
    index = np.arange(1, energies.shape[1] + 1)
    low, high = np.percentile(energies, BAND, axis=0)
    label = f"{len(energies)} eigenvectors, {BAND[0]}% to {BAND[1]}%"
    ax.fill_between(index, low, high, color=MEAN[0], alpha=0.2, lw=0, label=label)
    for height, (colour, marker), label in (
        (energies.mean(axis=0), MEAN, "mean"),
        (moment.weighted_energies, WEIGHTED, "mean weighted by |eigenvalue|"),
    ):
        ax.plot(index, height, color=colour, marker=marker, ms=5, lw=1.8, label=label)
    layer_axis(ax, len(index))
    ax.set_ylabel("energy of eigenvectors")
    ax.set_title(f"{moment.when}:\n|eigenvalues| {values[0]:.3g} … {values[-1]:.3g}")


def _draw_coordinates(ax: Axes, moment: Moment) -> None:
    predicted = moment.coordinates("predicted")
    for name in ("infinitesimal", "step"):
        colour, marker = STYLES[name]
        fill = "none" if name == "step" else colour  # where they lie on one another
        values, label = moment.coordinates(name), CHANGES[name]
        ax.scatter(predicted, values, s=26, marker=marker, facecolors=fill, edgecolors=colour, lw=1, label=label)
    for line in (ax.axhline, ax.axvline):
        line(0, color=GREY, lw=0.8, zorder=0)
    ax.set_title(
        f"{moment.when}:\ncorrelation {moment.correlation('infinitesimal'):.2f} (infinitesimal), "
        f"{moment.correlation('step'):.2f} (training)"
    )
    ax.set_xlabel(r"$-H_w\Psi$ỹ along an eigenvector (unit vector)")
    ax.set_ylabel(r"change of $\Psi$ỹ along it (unit vector)")
