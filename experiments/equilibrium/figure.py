"""Curves of the theory of information at large depth, with what was fitted to them and random networks beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from experiments.common.figures import GREY, Array, layer_axis, saved
from experiments.common.store import Row
from experiments.equilibrium.tables import columns

BLUE, VERMILION, GREEN, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)  # Okabe-Ito colours
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY, YELLOW, "black", "0.5", "0.7", "#F0E442")
MARKERS = "os^DvP*X<>"
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
NORMAL = 3  # standard errors of an error bar
NARROW = 30  # an axis whose greatest value is less than so many times its least has plain numbers


@dataclass(frozen=True)
class Curve:
    """Values, what was fitted to them, and the law that theory has for them.

    Attributes:
        label: The text for the legend, with the fits; empty for none.
        x: The abscissas, [k].
        y: The values, [k].
        theory: The theory's values at the same x, [k], or None.
        theory_label: The theory's text for the legend; empty for none.
        points: Whether to draw markers instead of a line.
    """

    label: str
    x: Array
    y: Array
    theory: Array | None = None
    theory_label: str = ""
    points: bool = True


@dataclass(frozen=True)
class Panel:
    """Log-log axes with curves.

    Attributes:
        title: The title above the axes.
        x: Label of the x axis.
        y: Label of the y axis.
        curves: The curves to draw.
        legend: Where the legend goes; for "below" it is under the axes.
    """

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    legend: str = "best"


@dataclass(frozen=True)
class Sampled:
    """What random networks have, beside the curve of infinite width, by layer.

    Attributes:
        label: The text for the pair of inputs.
        theory: The values at infinite width, [L].
        mean: The means over networks, [L].
        error: The standard errors of the means, [L].
    """

    label: str
    theory: Array
    mean: Array
    error: Array


def power_laws(panels: Sequence[Panel], title: str, path: Path, sampled: Sequence[Sampled] = ()) -> None:
    """Draw log-log panels, and perhaps one of random networks' values by layer behind them.

    Args:
        panels: The panels from left to right.
        title: The title of the figure.
        path: The file to write.
        sampled: The losses of random networks for a last panel.
    """
    count = len(panels) + bool(sampled)
    with saved(
        path,
        (7.6 if count == 1 else 6.2 * count, 8.0 if any(panel.legend == "below" for panel in panels) else 5.6),
        STYLE,
    ) as figure:
        axes = figure.subplots(1, count, squeeze=False)[0]
        for letter, ax, panel in zip("abcd", axes, panels, strict=False):
            _draw_panel(ax, panel)
            if count > 1:
                ax.set_title(f"({letter}) {panel.title}", fontsize=11)
            else:
                title += f"\n{panel.title}"
        if sampled:
            _draw_sampled(axes[-1], sampled)
            axes[-1].set_yscale("log")
            axes[-1].set_ylabel("loss of forward information")
            axes[-1].set_title(f"({'abcd'[count - 1]}) random networks on the curves of infinite width", fontsize=11)
        figure.suptitle(title, fontsize=12 if count > 1 else 10)


def finite_width(quantities: Mapping[str, Sequence[Sampled]], title: str, path: Path) -> None:
    """Draw a panel for each quantity: means over random networks with error bars on curves of infinite width."""
    with saved(path, (6.4 * len(quantities), 5.0), STYLE) as figure:
        axes = figure.subplots(1, len(quantities), squeeze=False)[0]
        for letter, ax, (label, sampled) in zip("abcd", axes, quantities.items(), strict=False):
            _draw_sampled(ax, sampled)
            ax.set_ylabel(label)
            low, high = ax.get_ylim()
            ax.set_ylim(low, high + 0.4 * (high - low))  # room for the legend
            ax.set_title(f"({letter}) {label.partition(' (')[0]}", fontsize=11)
        figure.suptitle(title, fontsize=12)


def alignment(panels: Mapping[str, tuple[Array, Mapping[int, Array]]], title: str, path: Path) -> None:
    """Draw predicted alignment with the labels by layer, and that of random networks, a panel for each kind of kernel.

    Args:
        panels: By heading, the prediction at infinite width, [L], and the measured values by width, [seeds, L] each.
        title: The title of the figure.
        path: The file to write.
    """
    with saved(path, (5.4 * len(panels), 5.0), STYLE) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for letter, ax, (heading, (predicted, measured)) in zip("abcd", axes, panels.items(), strict=False):
            index = np.arange(1, len(predicted) + 1)
            ax.plot(index, predicted, "-", color="black", lw=1.8, label="infinite width", zorder=3)
            for i, (width, values) in reversed(list(enumerate(measured.items()))):
                ax.fill_between(index, values.min(axis=0), values.max(axis=0), color=COLOURS[i], alpha=0.2, lw=0)
                label = f"width {width:,}: mean and range of {len(values)} seeds"
                ax.plot(index, values.mean(axis=0), MARKERS[i], color=COLOURS[i], ms=4.5, label=label)
            ax.set_ylim(0, 1.3 * max(predicted.max(), *(values.max() for values in measured.values())))
            ax.set_ylabel("alignment with labels at initialisation (CKA)")
            layer_axis(ax, len(index))
            ax.legend(loc="upper right", fontsize=9.5)
            ax.set_title(f"({letter}) kernels {heading}", fontsize=11)
        figure.suptitle(title, fontsize=12)


def trained_peaks(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw where alignment peaks in trained networks against depth, and what theory has for it.

    Args:
        rows: For each depth, columns depth, seeds, peak (of the curve averaged over seeds), least_peak, greatest_peak,
            equilibrium and peak_before_training.
        title: The title of the figure.
        path: The file to write.
    """
    depth, peak, low, high, balance, before = columns(
        rows, "depth", "peak", "least_peak", "greatest_peak", "equilibrium", "peak_before_training"
    )
    constant = np.exp(np.nanmean(np.log(peak / balance)))
    with saved(path, (7.6, 6.4), STYLE) as figure:
        ax = figure.subplots()
        seeds = "/".join(f"{row['seeds']:.0f}" for row in rows)
        ax.vlines(depth, low, high, color=BLUE, lw=5, alpha=0.25, label=f"range of peaks of networks ({seeds} seeds)")
        ax.plot(depth, peak, "o", color=BLUE, ms=7, label="peak of the curve averaged over seeds")
        ax.plot(depth, balance, "-", color=VERMILION, lw=1.8, label="equilibrium layer of theory")
        label = f"the same × {constant:.2f} (geometric mean of the ratios)"
        ax.plot(depth, constant * balance, "--", color=VERMILION, lw=1.4, label=label)
        ax.plot(depth, before, "s:", color=GREY, ms=5, mfc="white", label="peak at infinite width before training")
        ax.set(xscale="log", yscale="log", xlabel="depth L", ylabel="layer (1 is next to the input)")
        for axis, values in ((ax.xaxis, depth), (ax.yaxis, (1, 2, 5, 10, 20, 50, 100))):
            axis.set_major_locator(FixedLocator(list(values)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9.5)
        figure.suptitle(title, fontsize=11)


def _draw_panel(ax: Axes, panel: Panel) -> None:
    for i, curve in enumerate(panel.curves):
        colour = COLOURS[i]
        style = {"ls": "none", "marker": MARKERS[i]} if curve.points else {"ls": "-"}
        ax.plot(curve.x, curve.y, color=colour, lw=1.8, ms=4.5, label=curve.label or None, **style)
        if curve.theory is not None:
            ax.plot(
                curve.x,
                curve.theory,
                "--",
                color=GREY if len(panel.curves) == 1 else colour,
                lw=1.2,
                label=curve.theory_label or None,
            )
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis, values in ((ax.xaxis, [curve.x for curve in panel.curves]), (ax.yaxis, [c.y for c in panel.curves])):
        if np.nanmax(np.concatenate(values)) < NARROW * np.nanmin(np.concatenate(values)):
            _plain_numbers(axis)
    ax.set_xlabel(panel.x)
    ax.set_ylabel(panel.y)
    if panel.legend == "below":
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), fontsize=9.5)
    else:
        ax.legend(loc=panel.legend, fontsize=9.5)


def _plain_numbers(axis: Axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _draw_sampled(ax: Axes, sampled: Sequence[Sampled]) -> None:
    count = len(sampled[0].theory)
    index = np.arange(1, count + 1)
    for i, pair in enumerate(sampled):
        shift = 0.5 * ((i + 0.5) / len(sampled) - 0.5)  # bars of different pairs side by side
        ax.plot(index, pair.theory, "-", color=COLOURS[i], lw=1.4)
        ax.errorbar(
            index + shift,
            pair.mean,
            NORMAL * pair.error,
            fmt=MARKERS[i],
            color=COLOURS[i],
            ms=4,
            lw=1,
            label=pair.label,
        )
    layer_axis(ax, count)
    ax.legend(fontsize=9.5, title=f"lines: infinite width; bars: {NORMAL} standard errors", title_fontsize=9.5)
