"""Alignment by layer against depth on log-log axes with lines through its peaks (figures 3 and 8), and all slopes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.common.figures import Array, saved
from experiments.common.measuring import CENTERING_NAMES
from experiments.depth_scaling.line_fit import AVERAGED, CONFIDENCE, SINGLE
from experiments.depth_scaling.peaks import KINDS, MOMENTS, PROBES, REGRESSORS, View

# Okabe-Ito colours that are seen on any grey
SKY, ORANGE, VERMILION, PURPLE = "#56B4E9", "#E69F00", "#D55E00", "#CC79A7"
BLUE, GREEN = "#0072B2", "#009E73"  # on white
OUTSIDE = "#F3EAD9"  # where there are no layers: no grey, which would be an alignment
LAYERS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)  # to label
SEED_STEP = 1.02  # the factor between the places of two seeds of a depth


def depth_scaling(rows: Sequence[Sequence[View]], title: str, path: Path) -> None:
    """Draw a grid of views: the averaged alignment by layer and depth, the peaks of all networks, and lines.

    Args:
        rows: The views, with the same number of them in each row.
        title: The title of the figure.
        path: The file to write.
    """
    width = len(rows[0])
    with saved(path, (1.2 + 7 * width, 1.0 + 6 * len(rows)), {"font.size": 11}) as figure:
        axes = figure.subplots(len(rows), width, squeeze=False, sharex=True, sharey=True)
        for i, views in enumerate(rows):
            for j, view in enumerate(views):
                mesh = _draw(axes[i, j], view)
                if i == len(rows) - 1:
                    axes[i, j].set_xlabel("depth L (layers)")
                if j == 0:
                    axes[i, j].set_ylabel("layer l (1 is next to the input)")
        bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=30 * len(rows))
        bar.set_label("alignment (CKA), mean over seeds, relative to its greatest at that depth")
        figure.suptitle(title, fontsize=12)


def _draw(ax: Axes, view: View) -> QuadMesh:
    depths = sorted(view.averaged)
    edges = _edges(depths)
    for depth, left, right in zip(depths, edges[:-1], edges[1:], strict=True):
        values = view.averaged[depth]
        layers = np.arange(depth + 1) + 0.5
        mesh = ax.pcolormesh(
            [left, right], layers, (values / np.nanmax(values))[:, None], cmap="gray", vmin=0, vmax=1, rasterized=True
        )
    _draw_lines(ax, view, np.geomspace(edges[0], edges[-1], 100))
    _draw_peaks(ax, view)
    ax.set(xscale="log", yscale="log", xlim=(edges[0], edges[-1]), ylim=(0.5, edges[-1]), facecolor=OUTSIDE)
    ax.set_title(f"{CENTERING_NAMES[view.centering]}, {PROBES[view.probe]}\n{MOMENTS[view.moment]}", fontsize=11)
    ax.xaxis.set_major_locator(FixedLocator(_labelled(depths)))
    ax.yaxis.set_major_locator(FixedLocator([layer for layer in LAYERS if layer <= depths[-1]]))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.12), fontsize=9, ncols=2)
    return mesh


def _draw_lines(ax: Axes, view: View, x: Array) -> None:
    """Draw the line through the peaks of single networks with its interval, and the two that theory has."""
    depth, of_theory = (view.lines.get((name, SINGLE)) for name in ("depth", "equilibrium"))
    if depth is not None:
        low, high = depth.interval
        ax.plot(x, depth(x), color=SKY, lw=2.2, label=f"fit to peaks of networks: slope {depth.slope:.2f}")
        edge, other = depth.band(x)
        label = f"{CONFIDENCE:.0%} interval over seeds and depths: {low:.2f} ... {high:.2f}"
        ax.plot(x, edge, ":", color=SKY, lw=1.8, label=label)
        ax.plot(x, other, ":", color=SKY, lw=1.8)
        theory = REGRESSORS["depth"].theory
        constant = depth.constant_at(theory)
        where = "" if low <= theory <= high else " (outside the interval)"
        label = f"slope 3/5{where}: l = {constant:.2f} L$^{{3/5}}$"
        ax.plot(x, constant * x**theory, "--", color=ORANGE, lw=2.2, label=label)
    if of_theory is not None:
        constant = of_theory.constant_at(1.0)
        label = f"equilibrium layer of theory × {constant:.2f}"
        balance = REGRESSORS["equilibrium"].values(np.unique(np.round(x)).astype(int).tolist())
        ax.plot(np.unique(np.round(x)), constant * balance, "-.", color=PURPLE, lw=2.2, label=label)


def _draw_peaks(ax: Axes, view: View) -> None:
    """Draw the peaks of all networks, those of a depth beside one another, and of the averaged curves."""
    for at_limit, face, label in (
        (False, VERMILION, "peak of a network"),
        (True, "none", "the same, ended at the epoch limit"),
    ):
        places = [
            (_place(view, i), point.peak) for i, point in enumerate(view.points) if point.at_epoch_limit == at_limit
        ]
        if places:
            ax.plot(*zip(*places, strict=True), "o", color=VERMILION, mfc=face, ms=6, mew=1.6, label=label)
    peaks = [int(np.nanargmax(values)) + 1 for values in view.averaged.values()]
    ax.plot(list(view.averaged), peaks, "_", color=GREEN, ms=18, mew=3, label="peak of the curve averaged over seeds")


def _place(view: View, index: int) -> float:
    """Where to draw a network: near its depth, and beside the others of that depth."""
    depth = view.points[index].network.depth
    seeds = [point.network.seed for point in view.points if point.network.depth == depth]
    return float(depth * SEED_STEP ** (seeds.index(view.points[index].network.seed) - (len(seeds) - 1) / 2))


def slopes(views: Sequence[View], title: str, path: Path) -> None:
    """Draw the slopes of all lines with their intervals, against depth and against theory's equilibrium layer.

    Args:
        views: The views of one variant.
        title: The title of the figure.
        path: The file to write.
    """
    rows = [(view, kind) for view in views for kind in KINDS]
    with saved(path, (13, 2.2 + 0.32 * len(rows)), {"font.size": 10}) as figure:
        axes = figure.subplots(1, len(REGRESSORS), sharey=True)
        for ax, (name, regressor) in zip(axes, REGRESSORS.items(), strict=True):
            for kind, colour, marker in ((SINGLE, VERMILION, "o"), (AVERAGED, GREEN, "s")):
                found = [
                    (i, one) for i, (view, of) in enumerate(rows) if of == kind if (one := view.lines.get((name, of)))
                ]
                if not found:
                    continue
                at = [i for i, _ in found]
                middle = np.array([one.slope for _, one in found])
                reach = np.abs(np.array([one.interval for _, one in found]).T - middle)
                label = f"{KINDS[kind]}, {CONFIDENCE:.0%} interval"
                ax.errorbar(middle, at, xerr=reach, fmt=marker, color=colour, ms=6, capsize=3, label=label)
            theory = f"theory: {'3/5' if name == 'depth' else f'{regressor.theory:g}'}"
            ax.axvline(regressor.theory, ls="--", color=BLUE, label=theory)
            ax.set_xlabel(f"slope of log peak against log {regressor.label}")
            ax.grid(axis="x", color="0.9")
            for i in range(len(KINDS), len(rows), len(KINDS)):
                ax.axhline(i - 0.5, color="0.8", lw=0.8)
            ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
        axes[0].set_yticks(
            np.arange(0, len(rows), len(KINDS)) + (len(KINDS) - 1) / 2,
            [
                f"{MOMENTS[view.moment].partition(' (')[0]}\n{CENTERING_NAMES[view.centering]}, {PROBES[view.probe]}"
                for view in views
            ],
            va="center",
        )
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        for ax in axes:
            ax.tick_params(axis="y", left=False)
        figure.suptitle(title, fontsize=11)


def _labelled(depths: Sequence[int]) -> list[int]:
    """The depths that are far enough from one another for a label each."""
    chosen = depths[:1]
    for depth in depths[1:]:
        if depth >= 1.15 * chosen[-1]:
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
