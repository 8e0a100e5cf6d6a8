"""The paper's figures 4 and 11 to 15: alignment by layer in every cell of a grid of hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from experiments.common.figures import Array, mean_over_runs, of_seeds, peak_of, plot_range, saved

PANEL = (2.25, 1.45)  # inches
LEAST_WIDTH = 9.0  # inches: the legend and a title need them
HEADROOM = 1.6  # axis over curve: room for the corners, and for the number above a peak
BLUE = "#08306b"
GREY, GLOBAL, UNSEEN = "0.3", "#009E73", "#CC79A7"
LIMIT_HATCH = ".."
MOST_LAYERS = 6  # ticks along the layers of a panel
# Light to middle tones of one family: black text and a dark line are readable on each, with any colour vision.
LOSS_COLOURS = ListedColormap(matplotlib.colormaps["YlOrBr"](np.linspace(0.02, 0.6, 256)))


@dataclass(frozen=True)
class Panel:
    """One cell of the grid.

    Attributes:
        ends: By centering, the alignment by layer at the end of every run on the training samples, [seeds, L], nan
            where it is not defined; empty if there is a message.
        start: The same before training, each output centered; None if there is a message.
        unseen: The same at the end on test samples, each output centered; None if there is a message.
        train_loss: The training loss at the end, in nats.
        test_loss: The test loss at the end, in nats.
        message: The text in place of a curve; empty if there is one.
        at_limit: Whether a run ended at the epoch limit.
        remark: What else a reader must know of this cell; empty for nothing.
    """

    ends: Mapping[str, Array] = field(default_factory=dict)
    start: Array | None = None
    unseen: Array | None = None
    train_loss: float = np.nan
    test_loss: float = np.nan
    message: str = ""
    at_limit: bool = False
    remark: str = ""


@dataclass(frozen=True)
class Block:
    """The panels of one optimizer, ``panels[row][column]``, and what a row and a column stand for."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    panels: Sequence[Sequence[Panel]]


def alignment_grid(blocks: Sequence[Block], title: str, path: Path) -> None:
    """Draw blocks of panels, one below the other.

    Each panel has the alignment by layer before and after training with each output centered, in the mean over seeds
    with a band of their range, its peak ringed, the same on test samples, and the one after training with global
    centering. The background has the colour of the test loss and is dotted where runs ended at the epoch limit, and
    the generalisation gap (test loss minus train loss) is in the corner. A nan leaves a gap.

    Args:
        blocks: Blocks with at least one panel each.
        title: The title of the figure.
        path: The file to write.
    """
    rows, columns = sum(len(block.rows) for block in blocks), max(len(block.columns) for block in blocks)
    size = (max(LEAST_WIDTH, 2.4 + PANEL[0] * columns), 1.7 + PANEL[1] * rows + 0.45 * len(blocks))
    panels = [panel for block in blocks for line in block.panels for panel in line]
    drawn = [panel for panel in panels if not panel.message]
    with saved(path, size, {"font.size": 10, "hatch.linewidth": 0.6}) as figure:
        norm = _loss_norm([panel.test_loss for panel in drawn])
        curves = [curve for panel in drawn for curve in panel.ends.values()]
        curves += [panel.unseen for panel in drawn if panel.unseen is not None]
        top = HEADROOM * max((float(np.nanmax(curve, initial=0.0)) for curve in curves), default=0.0)
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        first = 0
        for block in blocks:
            for i, name in enumerate(block.rows):
                _label_row(axes[first + i, 0], block.title if i == 0 else "", name)
                for j in range(columns):
                    ax = axes[first + i, j]
                    if j >= len(block.columns):
                        ax.axis("off")
                        continue
                    if i == 0:
                        ax.set_title(block.columns[j], fontsize=10)
                    _draw(ax, block.panels[i][j], norm)
            first += len(block.rows)
        layers = next((panel.start.shape[1] for panel in panels if panel.start is not None), 1)
        axes[0, 0].set_xlim(0.4, layers + 0.6)
        axes[0, 0].set_ylim(0, top or 1)
        axes[0, 0].set_xticks(range(1, layers + 1, -(-layers // MOST_LAYERS)))
        axes[0, 0].yaxis.set_major_locator(MaxNLocator(nbins=4))
        for ax in axes[-1]:
            ax.set_xlabel("layer (1 is next to the input)", fontsize=9)
        figure.supylabel("alignment with labels (CKA)", fontsize=11)
        _colour_bar(figure, axes, norm)
        _legend(figure, next((len(panel.start) for panel in panels if panel.start is not None), 1))
        figure.suptitle(title, fontsize=11)


def _loss_norm(losses: Sequence[float]) -> LogNorm:
    """A scale of colours from the least to the greatest loss, logarithmic because losses before training are large."""
    low, high = (min(losses), max(losses)) if losses else (0.1, 1.0)
    return LogNorm(low / 1.02, high * 1.02)


def _label_row(ax: Axes, block: str, row: str) -> None:
    ax.set_ylabel(row, fontsize=10)
    if block:
        ax.annotate(
            block, (0, 1), (0, 20), "axes fraction", "offset points", fontsize=11, fontweight="bold", va="bottom"
        )


def _draw(ax: Axes, panel: Panel, norm: LogNorm) -> None:
    ax.tick_params(labelsize=9)
    if panel.message:
        ax.patch.set(facecolor="0.93", hatch="//", edgecolor="0.8")
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2.5}
        ax.text(0.5, 0.5, panel.message, transform=ax.transAxes, ha="center", va="center", fontsize=10, bbox=box)
        return
    ax.set_facecolor(LOSS_COLOURS(norm(panel.test_loss)))
    gap = f"gap {round(panel.test_loss - panel.train_loss, 2) + 0.0:.2f}".replace("-", "−")
    ax.text(0.04, 0.95, gap, transform=ax.transAxes, va="top", fontsize=10, fontweight="bold")
    if panel.at_limit:
        ax.patch.set(hatch=LIMIT_HATCH, edgecolor="0.7")
    box = {"facecolor": LOSS_COLOURS(norm(panel.test_loss)), "edgecolor": "none", "pad": 1}
    ax.text(0.97, 0.94, panel.remark, transform=ax.transAxes, va="top", ha="right", fontsize=8, bbox=box)
    if panel.start is None:
        return
    index = np.arange(1, panel.start.shape[1] + 1)
    ax.plot(index, mean_over_runs(panel.start), "--", color=GREY, lw=1)
    plot_range(ax, index, panel.ends["global"], color=GLOBAL, ls=":", lw=1.6)
    if panel.unseen is not None:
        ax.plot(index, mean_over_runs(panel.unseen), color=UNSEEN, lw=1.6)
    plot_range(ax, index, panel.ends["per_output"], color=BLUE, marker="o", lw=1.8, ms=3.5)
    peak, height = peak_of(mean_over_runs(panel.ends["per_output"]))
    if not peak:
        return
    ax.plot(peak, height, "o", ms=10, mfc="none", mec="black", mew=1.3)
    ax.annotate(f"{peak}", (peak, height), (0, 6), textcoords="offset points", ha="center", va="bottom", fontsize=9)


def _colour_bar(figure: Figure, axes: Array, norm: LogNorm) -> None:
    bar = figure.colorbar(ScalarMappable(norm, LOSS_COLOURS), ax=axes, pad=0.015, aspect=40, fraction=0.04)
    bar.ax.yaxis.set_major_locator(MaxNLocator(8))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.minorticks_off()
    bar.set_label("test loss at the end (nats)", fontsize=10)


def _legend(figure: Figure, seeds: int) -> None:
    label = f"after training, each output centered{of_seeds(seeds)}"
    handles = [
        Line2D([], [], color=BLUE, marker="o", ms=3.5, lw=1.8, label=label),
        Line2D([], [], color=GREY, ls="--", lw=1, label="before"),
        Line2D([], [], color=UNSEEN, lw=1.6, label="after training, on test images"),
        Line2D([], [], ls="", marker="o", ms=10, mfc="none", mec="black", mew=1.3, label="peak, with its layer"),
        Line2D([], [], color=GLOBAL, ls=":", lw=1.6, label="after training, global centering (equation 6)"),
        Patch(facecolor="white", hatch=LIMIT_HATCH, edgecolor="0.7", label="ended at the epoch limit"),
        Line2D([], [], ls="", label="gap: test loss − train loss (nats)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
