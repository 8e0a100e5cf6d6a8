"""Alignment against the number of samples, as it is and debiased, before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from experiments.cka_bias.tables import KINDS, alignments, sizes, states
from experiments.common.figures import GREY, layer_bar, layer_colours, layer_names, saved
from experiments.common.store import Row


def cka_bias(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw the mean over subsets for each layer, with bands of a standard deviation; dotted for shuffled labels.

    Args:
        rows: Rows with columns iteration, samples, subset, shuffled, cka/<layer> and debiased_cka/<layer>.
        title: The title of the figure.
        path: The file to write.
    """
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with saved(path, (11, 8.6), style) as figure:
        axes = figure.subplots(2, 2, sharex=True, sharey="row")
        for of_state, (iteration, state) in zip(axes, states(rows).items(), strict=True):
            for ax, (kind, what) in zip(of_state, KINDS.items(), strict=True):
                _draw(ax, rows, kind, iteration)
                ax.set_title(f"{state}, {what}", fontsize=11)
        for ax in axes[:, 0]:
            ax.set_ylabel("alignment (CKA)")
        for ax in axes[1]:
            ax.set_xlabel("samples (logarithmic)")
        layer_bar(figure, list(axes.flat), len(layer_names(rows)), "layer")
        lines = [
            axes[0, 0].plot([], [], color=GREY, ls=ls, lw=1.8, label=label)[0]
            for ls, label in (("-", "with the labels"), (":", "with shuffled labels"))
        ]
        figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False, fontsize=10.5)
        figure.suptitle(title, fontsize=12)


def _draw(ax: Axes, rows: Sequence[Row], kind: str, iteration: int) -> None:
    samples = np.array(sizes(rows))
    for shuffled, ls in ((False, "-"), (True, ":")):
        values = alignments(rows, kind, iteration, shuffled=shuffled)
        for layer, colour in enumerate(layer_colours(values.shape[2])):
            mean, spread = values[..., layer].mean(1), values[..., layer].std(1, ddof=1)
            ax.plot(samples, mean, color=colour, ls=ls, lw=1.8, marker="o", ms=3)
            ax.fill_between(samples, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
    ax.axhline(0, color=GREY, lw=0.7, zorder=0)
    ax.set_xscale("log")
    ax.set_xticks(samples)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
