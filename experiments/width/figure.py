"""Alignment by layer, its peak, and how far weights moved, against the width of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.common.figures import GREY, ORANGE, Array, layer_axis, saved, table
from experiments.common.store import Row

BLUE = "#0072B2"  # Okabe-Ito colours


@dataclass(frozen=True)
class Trained:
    """One network: alignment by layer before and after training, and |W_l - W_l(0)| / |W_l(0)| after, each [L]."""

    before: Array
    after: Array
    moved: Array


def trained(rows: Sequence[Row]) -> Trained:
    """The numbers of a run that the figure shows."""

    def values(prefix: str, row: int) -> Array:
        of_layers: Array = table([rows], prefix)[0, row]
        return of_layers

    return Trained(values("cka", 0), values("cka", -1), values("moved", -1))


def width(rows: Mapping[str, Mapping[int, Trained]], limit: Array, title: str, path: Path) -> None:
    """Draw a row of pictures for every choice of learning rates.

    Args:
        rows: The networks by width for each row, by the title of the row.
        limit: The alignment by layer of a network of infinite width before training, [L].
        title: The title of the figure.
        path: The file to write.
    """
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with saved(path, (15, 1.1 + 4.4 * len(rows)), style) as figure:
        axes = figure.subplots(len(rows), 3, squeeze=False, sharey="col", width_ratios=(1.35, 1, 1))
        for (name, networks), (by_layer, peak, moved) in zip(rows.items(), axes, strict=True):
            _draw_by_layer(by_layer, networks, limit)
            by_layer.set_title(name, loc="left", fontsize=11)
            _draw_peak(peak, networks, limit)
            _draw_moved(moved, networks)
        for column in axes[:, :2].T:
            column[0].set_ylim(0, 1.3 * max(ax.dataLim.y1 for ax in column))  # room for the legends
        figure.suptitle(title, fontsize=12)


def _draw_by_layer(ax: Axes, networks: Mapping[int, Trained], limit: Array) -> None:
    index = np.arange(1, len(limit) + 1)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(networks)))
    for (width, one), colour in zip(sorted(networks.items()), colours, strict=True):
        ax.plot(index, one.after, color=colour, lw=1.8, label=f"{width:,}")
        ax.plot(index, one.before, ":", color=colour, lw=1.2)
        if not np.isnan(one.after).all():
            peak = int(np.nanargmax(one.after))
            ax.plot(peak + 1, one.after[peak], "o", color=colour, ms=7)
    ax.plot(index, limit, "--", color="black", lw=1.5, label="infinite, before")
    layer_axis(ax, len(limit))
    ax.set_ylabel("alignment with the labels (CKA)")
    ax.legend(title="width (dotted: before training)", frameon=False, fontsize=9, title_fontsize=9, ncols=2)


def _draw_peak(ax: Axes, networks: Mapping[int, Trained], limit: Array) -> None:
    widths = sorted(networks)
    before = [np.nanmax(networks[width].before) for width in widths]
    after = [np.nanmax(networks[width].after) for width in widths]
    ax.plot(widths, after, "o-", color=BLUE, label="after training (number: its layer)")
    ax.plot(widths, before, "s:", color=ORANGE, mfc="white", label="before training")
    ax.axhline(np.nanmax(limit), ls="--", color="black", lw=1.2, label="infinite width, before")
    for width, value in zip(widths, after, strict=True):
        layer = int(np.nanargmax(networks[width].after)) + 1
        ax.annotate(str(layer), (width, value), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=10)
    _width_axis(ax, widths)
    ax.set_ylabel("greatest alignment of a layer (CKA)")
    ax.legend(frameon=False, fontsize=9, loc="upper right")


def _draw_moved(ax: Axes, networks: Mapping[int, Trained]) -> None:
    widths = sorted(networks)
    moved = np.array([networks[width].moved for width in widths])  # [widths, L]
    last = moved.shape[1] - 1
    for layer, style in zip(sorted({0, last // 2, last}), ("o-", "s--", "^:"), strict=False):
        ax.plot(widths, moved[:, layer], style, color=BLUE, ms=5, label=f"layer {layer + 1}")
    guide = np.sqrt(widths[0] / np.array(widths))
    ax.plot(widths, 0.7 * np.nanmin(moved[0]) * guide, "-", color=GREY, lw=1, label=r"$\propto$ width$^{-1/2}$")
    _width_axis(ax, widths)
    ax.set_yscale("log")
    ax.set_ylabel(r"relative change of the weights, $\|W_l - W_l(0)\|\ /\ \|W_l(0)\|$")
    ax.legend(frameon=False, fontsize=9)


def _width_axis(ax: Axes, widths: Sequence[int]) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(widths))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    ax.set_xlabel("width (units of a hidden layer)")
