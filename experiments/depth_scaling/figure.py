"""Alignment by layer against depth on log-log axes, with the lines through its peaks (figures 3 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.common.figures import Array, saved
from experiments.depth_scaling.line_fit import CONFIDENCE, Line

SKY, ORANGE, VERMILION = "#56B4E9", "#E69F00", "#D55E00"  # Okabe-Ito colours that are seen on any grey
OUTSIDE = "#F3EAD9"  # where there are no layers: no grey, which would be an alignment
LAYERS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)  # to label


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: The title above it.
        columns: The alignment by layer, [depth], by depth.
        peaks: The peaks with the lines through them.
    """

    title: str
    columns: dict[int, Array]
    peaks: Line


def depth_scaling(rows: Sequence[Sequence[Panel]], title: str, path: Path) -> None:
    """Draw a grid of pictures.

    Args:
        rows: The panels, with the same number of them in each row.
        title: The title of the figure.
        path: The file to write.
    """
    width = len(rows[0])
    with saved(path, (1.2 + 4.9 * width, 1.3 + 4.6 * len(rows)), {"font.size": 11}) as figure:
        axes = figure.subplots(len(rows), width, squeeze=False, sharex=True, sharey=True)
        for i, panels in enumerate(rows):
            for j, panel in enumerate(panels):
                mesh = _draw(axes[i, j], panel)
                if i == len(rows) - 1:
                    axes[i, j].set_xlabel("depth L (layers)")
                if j == 0:
                    axes[i, j].set_ylabel("layer l (1 is next to the input)")
        bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=30 * len(rows))
        bar.set_label("alignment (CKA), relative to the greatest of the network")
        figure.suptitle(title, fontsize=12)


def _draw(ax: Axes, panel: Panel) -> QuadMesh:
    depths = sorted(panel.columns)
    edges = _edges(depths)
    for depth, left, right in zip(depths, edges[:-1], edges[1:], strict=True):
        values = panel.columns[depth]
        layers = np.arange(depth + 1) + 0.5
        mesh = ax.pcolormesh(
            [left, right], layers, (values / np.nanmax(values))[:, None], cmap="gray", vmin=0, vmax=1, rasterized=True
        )
    x = np.geomspace(edges[0], edges[-1], 100)
    peaks = panel.peaks
    if peaks.fitted:
        best, (low, high) = peaks.best, peaks.interval
        for edge in peaks.band(x):
            ax.plot(x, edge, ":", color=SKY, lw=1.6)
        label = f"best fit: slope {best.exponent:.2f} ({CONFIDENCE:.0%}: {low:.2f} ... {high:.2f})"
        ax.plot(x, best(x), color=SKY, lw=2.2, label=label)
        label = f"slope 3/5: l = {peaks.theory_constant:.2f} L$^{{3/5}}$"
        ax.plot(x, peaks.theory_constant * x**0.6, "--", color=ORANGE, lw=2.2, label=label)
    ax.plot(peaks.depths, peaks.layers, "x", color=VERMILION, ms=10, mew=2.6, label="peak", ls="")
    ax.set(xscale="log", yscale="log", xlim=(edges[0], edges[-1]), ylim=(0.5, edges[-1]), facecolor=OUTSIDE)
    ax.set_title(panel.title, fontsize=11)
    ax.xaxis.set_major_locator(FixedLocator(_labelled(depths)))
    ax.yaxis.set_major_locator(FixedLocator([layer for layer in LAYERS if layer <= depths[-1]]))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.legend(loc="upper left", fontsize=9.5, framealpha=0.9)
    return mesh


def _labelled(depths: Sequence[int]) -> list[int]:
    """The depths that are far enough from one another for a label each."""
    chosen = depths[:1]
    for depth in depths[1:]:
        if depth >= 1.25 * chosen[-1]:
            chosen = [*chosen, depth]
    return chosen


def _edges(depths: Sequence[int]) -> Array:
    """The middles between neighbouring depths in the logarithm, and an edge at either end, [k + 1]."""
    logs = np.log(depths)
    if len(logs) == 1:
        return np.array([depths[0] / 1.2, depths[0] * 1.2])
    middles = (logs[1:] + logs[:-1]) / 2
    first, last = 2 * logs[0] - middles[0], 2 * logs[-1] - middles[-1]
    edges: Array = np.exp([first, *middles, last])
    return edges
