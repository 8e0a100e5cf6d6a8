"""What the figures of all studies share: reading rows by layer, writing a file, axes and colours."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from experiments.common.store import Row, write_atomically

Array = NDArray[np.float64]

GREY = "0.35"
ORANGE = "#D55E00"  # Okabe-Ito colours
NEAR = 0.02  # of the greatest alignment
MOST_BOUNDED = 12  # more layers than this: a colour bar with fewer labels


def layer_names(rows: Sequence[Row], of: str = "cka") -> list[str]:
    """The layers with columns ``of/layer``, in forward order."""
    return [key.removeprefix(f"{of}/") for key in rows[0] if key.startswith(f"{of}/")]


def table(runs: Sequence[Sequence[Row]], prefix: str, of: str = "cka") -> Array:
    """Columns ``prefix/layer`` of every run and row, [runs, rows, L]; nan where there is no value.

    The layers are those of columns ``of/layer``.
    """
    layers = layer_names(runs[0], of)
    return np.array([[[row.get(f"{prefix}/{layer}", np.nan) for layer in layers] for row in rows] for rows in runs])


def peak(row: Row, of: str = "cka") -> tuple[int, float]:
    """The layer of greatest alignment in a row (1 is next to the input) and that alignment; 0 and nan if none has.

    Alignments are those of columns ``of/layer``.
    """
    return peak_of(table([[row]], of, of)[0, 0])


def peak_of(values: Array) -> tuple[int, float]:
    """The layer of greatest alignment, of values [L], and that alignment; 0 and nan where all are nan."""
    if np.isnan(values).all():
        return 0, np.nan
    index = int(np.nanargmax(values))
    return index + 1, float(values[index])


def column(runs: Sequence[Sequence[Row]], name: str) -> Array:
    """A column of every run, [runs, rows]."""
    return np.array([[row[name] for row in rows] for rows in runs])


def mean_over_runs(values: Array) -> Array:
    """The mean over the first axis without values that are nan; nan where all are."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    mean: Array = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def near_peak(values: Array) -> int:
    """The number of layers whose alignment, of values [L], is within NEAR of the greatest one."""
    return int((values >= (1 - NEAR) * np.nanmax(values)).sum())


@contextmanager
def saved(path: Path, size: tuple[float, float], style: dict[str, Any]) -> Iterator[Figure]:
    """A figure to draw on, written as PNG at the end of the block; the same drawing gives the same bytes.

    Args:
        path: The file to write, whole or not at all.
        size: Width and height in inches.
        style: Parameters of matplotlib.
    """
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.draw_without_rendering()  # a layout with a legend beside the axes settles in the second drawing
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=150)
        write_atomically(path, content.getvalue())


# ---- axes and colours, in all figures


def of_seeds(count: int) -> str:
    """The words for a legend about a line with a band that is of so many seeds."""
    return f" (mean and range of {count} seeds)" if count > 1 else ""


def named_seeds(seeds: Sequence[int]) -> str:
    """The words for a title about these seeds."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def plot_range(ax: Axes, x: Array, values: Array, **style: Any) -> None:
    """Draw the mean over runs of values [runs, k] against x, and for several runs a band from least to greatest."""
    ax.plot(x, mean_over_runs(values), **style)
    if len(values) > 1:
        low, high = np.fmin.reduce(values), np.fmax.reduce(values)
        ax.fill_between(x, low, high, color=style["color"], alpha=0.2, lw=0)


def layer_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Colours from dark to light along the depth, readable without colour vision, without the lightest yellows."""
    return [tuple(colour) for colour in matplotlib.colormaps["viridis"](np.linspace(0.0, 0.92, count))]


def layer_bar(figure: Figure, ax: Axes | Sequence[Axes], count: int, label: str) -> None:
    """Add a colour bar beside the axes that says which layer has which colour."""
    colours = ListedColormap(layer_colours(count))
    bar = figure.colorbar(
        matplotlib.cm.ScalarMappable(BoundaryNorm(np.arange(count + 1) + 0.5, count), colours),
        ax=ax,
        pad=0.01,
        aspect=25,
    )
    bar.set_ticks(layer_ticks(count))
    bar.ax.tick_params(length=0)
    bar.ax.minorticks_off()
    bar.set_label(label)


def layer_ticks(count: int) -> list[int]:
    """The layers to label: the first, and as many others at equal distances as there is room for."""
    every = -(-count // MOST_BOUNDED)
    return sorted({1, *range(every, count + 1, every)})


def layer_axis(ax: Axes, count: int) -> None:
    """Show layers along x."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=MOST_BOUNDED, min_n_ticks=1))
    ax.set_xlim(0.5, count + 0.5)
    ax.set_xlabel("layer (1 is next to the input)")


def iteration_axis(ax: Axes, last: int) -> None:
    """Show iterations 0 to ``last`` along x on a logarithmic scale."""
    ax.set_xscale("symlog", linthresh=1, linscale=0.25)  # iteration 0 sits left of 1
    ax.set_xlim(-0.12, last * 1.2)
    decades = [10**k for k in range(len(str(last))) if 10**k <= last]
    ax.set_xticks([0, *decades])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_xlabel("iteration (logarithmic from 1 on)")
