"""The paper's figures 19 to 23: eigenvalues, stable ranks and correlations by layer under several conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.common.figures import Array, layer_axis, layer_bar, layer_colours, layer_names, saved, table
from experiments.common.measuring import binomial_error
from experiments.common.store import Row

# Okabe-Ito colours, with markers for those who cannot tell them apart.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#56B4E9", "v"),
    ("black", "P"),
)
MOST_CONDITIONS = len(STYLES)
GREY = "0.45"
PANELS_PER_ROW = 3
ROUNDING = 1e-13  # relative eigenvalues up to this are no more than rounding


@dataclass(frozen=True)
class Outcome:
    """What became of one condition.

    Attributes:
        name: The name of the run.
        label: The condition in words.
        test_samples: The number of samples that its test accuracy is counted on.
        rows: Its measurements, the first before training and the last at its end.
        eigenvalues: Rows with a column for each layer, from the largest eigenvalue down.
    """

    name: str
    label: str
    test_samples: int
    rows: list[Row]
    eigenvalues: list[Row]

    @property
    def tested(self) -> str:
        """The accuracy with its binomial error, and the loss, on the test samples at the end."""
        accuracy, loss = self.rows[-1]["test_accuracy"], self.rows[-1]["test_loss"]
        return f"test accuracy {accuracy:.1%} ± {binomial_error(accuracy, self.test_samples):.1%}, test loss {loss:.2f}"

    @property
    def relative_eigenvalues(self) -> Array:
        """The eigenvalues over each layer's largest, [K, L]; nan for a layer whose centered kernel is zero."""
        values = np.array([[row[layer] for layer in layer_names(self.rows)] for row in self.eigenvalues])
        relative: Array = np.divide(values, values[0], out=np.full(values.shape, np.nan), where=values[0] > 0)
        return relative

    def by_layer(self, statistic: str, row: int = -1) -> Array:
        """A statistic by layer, [L], at the end or in another row."""
        values: Array = table([self.rows], statistic)[0, row]
        return values


def spectrum(outcomes: Sequence[Outcome], title: str, path: Path) -> None:
    """Draw the largest eigenvalues of every layer's C K C over the largest of all, a panel for each condition.

    Args:
        outcomes: Conditions with the same layers and number of eigenvalues.
        title: The title of the figure.
        path: The file to write.
    """
    columns = 2 if len(outcomes) == 4 else min(PANELS_PER_ROW, len(outcomes))
    rows = -(-len(outcomes) // columns)
    with saved(path, (1.4 + 3.9 * columns, 1.2 + 3.4 * rows), {"font.size": 11}) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        colours = layer_colours(len(layer_names(outcomes[0].rows)))
        for ax, outcome in zip(axes.flat, outcomes, strict=False):
            relative = outcome.relative_eigenvalues
            relative = np.where(relative > ROUNDING, relative, np.nan)
            for values, colour in zip(relative.T, colours, strict=True):
                ax.plot(np.arange(1, len(values) + 1), values, color=colour, lw=1.6)
            ax.set_yscale("log")
            ax.set_title(f"{outcome.label}\n{outcome.tested}", fontsize=11)
            ax.grid(which="major", color="0.9", lw=0.6)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
            ax.tick_params(labelbottom=True)
        for ax in axes.flat[len(outcomes) :]:
            ax.axis("off")
        for ax in axes.flat[max(0, len(outcomes) - columns) : len(outcomes)]:
            ax.set_xlabel("index of the eigenvalue")
        for ax in axes[:, 0]:
            ax.set_ylabel("eigenvalue of $CKC$ over the largest")
        layer_bar(figure, list(axes.flat), len(colours), "layer (1 is next to the input)")
        figure.suptitle(title, fontsize=12)


def stable_rank(outcomes: Sequence[Outcome], title: str, path: Path) -> None:
    """Draw alignment, stable ranks and correlations of kernels and Fisher information by layer, a line per condition.

    Args:
        outcomes: Conditions with the same layers; the start that is drawn for comparison is the first one's.
        title: The title of the figure.
        path: The file to write.
    """
    with saved(path, (13, 7.6), {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}) as figure:
        axes = figure.subplots(2, 3)
        for first, *others in ((1, 3, 4), (2, 5)):  # panels of one quantity have one scale
            for other in others:
                axes.flat[other].sharey(axes.flat[first])
        panels = (
            ("alignment with the labels trained on", "CKA", "cka"),
            ("stable rank of the kernel", "stable rank", "stable_rank"),
            ("correlation with the labels trained on", "label correlation", "label_correlation"),
            ("kernel and Fisher information", "stable rank", ""),
            ("stable rank of the Fisher information", "stable rank", "fisher_stable_rank"),
            ("correlation of the Fisher information", "label correlation", "fisher_label_correlation"),
        )
        for letter, ax, (heading, unit, statistic) in zip("abcdef", axes.flat, panels, strict=True):
            if statistic:
                _draw_by_layer(ax, outcomes, statistic)
            else:
                _draw_by_layer(ax, outcomes, "stable_rank", start=False)
                _draw_by_layer(ax, outcomes, "fisher_stable_rank", start=False, style="--")
            ax.set_title(f"({letter}) {heading}", fontsize=11)
            ax.set_ylabel(unit)
            layer_axis(ax, len(layer_names(outcomes[0].rows)))
            if "rank" in unit:
                ax.set_yscale("log")  # from 1 to many
                ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                ax.yaxis.set_minor_locator(NullLocator())
                ax.set_ylim(bottom=1)
            else:
                ax.set_ylim(bottom=0)
        handles = [
            Line2D([], [], color=colour, marker=marker, ms=5, lw=1.8, label=f"{outcome.label}: {outcome.tested}")
            for outcome, (colour, marker) in zip(outcomes, STYLES, strict=False)
        ]
        handles += [
            Line2D([], [], color=GREY, ls=":", lw=1.6, label="before training"),
            Line2D([], [], color="black", ls="-", lw=1.8, label="kernel, in (d)"),
            Line2D([], [], color="black", ls="--", lw=1.8, mfc="white", label="Fisher information, in (d)"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=10.5)
        figure.suptitle(title, fontsize=12)


def _draw_by_layer(ax: Axes, outcomes: Sequence[Outcome], statistic: str, start: bool = True, style: str = "-") -> None:
    """Draw the lines of one statistic; the start is the same network in every condition, so that one line is enough."""
    for outcome, (colour, marker) in zip(outcomes, STYLES, strict=False):
        values = outcome.by_layer(statistic)
        index, filled = np.arange(1, len(values) + 1), colour if style == "-" else "white"
        ax.plot(index, values, style, color=colour, marker=marker, ms=5, lw=1.8, mfc=filled, clip_on=False)
    if start:
        values = outcomes[0].by_layer(statistic, 0)
        ax.plot(np.arange(1, len(values) + 1), values, ":", color=GREY, lw=1.6, zorder=1)
