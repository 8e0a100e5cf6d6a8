"""The figures of the page: every contender's time in units of ours, and time and memory against size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.common.figure import saved
from benchmarks.comparison import scaling
from benchmarks.comparison.contenders import UNIT
from benchmarks.comparison.tasks import QUANTITIES

Record = dict[str, Any]
# Okabe and Ito's palette, readable without colour vision; markers tell contenders of one colour apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F")
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
OURS = {"color": "black", "marker": "o", "linewidth": 2.4, "markersize": 6, "zorder": 5}
AXES = {"n": "samples n", "width": "width", "depth": "depth (layers)", "outputs": "outputs o"}


def draw(record: Record, folder: Path, device: str) -> dict[str, str]:
    """Draws what the record has results for, and returns the paths from the page, by what the figures show."""
    styles, found = styles_of(record), {}
    sizes = {"tasks": (11, 0.42 * len(record["tasks"]) + 2.6), "sweeps": (3.6 * len(record["sweeps"]) + 0.6, 7.4)}
    for kind, draw_kind in (("tasks", draw_tasks), ("sweeps", draw_sweeps)):
        if record[kind]:
            name = f"comparison-{device}-{kind}.png"
            with saved(folder / name, sizes[kind]) as figure:
                draw_kind(figure, record, styles)
            found[kind] = f"{folder.name}/{name}"
    return found


def styles_of(record: Record) -> dict[str, dict[str, Any]]:
    """Colour and marker of every contender, the same in all figures."""
    others = [name for name in record["contenders"] if not name.startswith(UNIT)]
    styles: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(others):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        styles[name] = {"color": colour, "marker": marker, "linewidth": 1.5, "markersize": 6}
    for name in record["contenders"]:
        if name.startswith(UNIT):
            styles[name] = OURS if name == UNIT else OURS | {"linestyle": "--", "markerfacecolor": "white"}
    return styles


def draw_tasks(figure: Figure, record: Record, styles: dict[str, dict[str, Any]]) -> None:
    """A line for each task; a point for each contender, at its time over ours."""
    ax = figure.add_subplot()
    labels, shown = [], {}
    for y, task in enumerate(reversed(record["tasks"])):
        of_task = task["task"]
        network = "ResNet18, " if of_task["network"] == "resnet18" else ""
        labels.append(f"{QUANTITIES[of_task['quantity']]}, {network}n = {of_task['n']:,}")
        right = [row for row in task["rows"] if row["outcome"] == "ok" and "median_s" in row]
        unit = next((row["median_s"] for row in right if row["contender"] == UNIT), None)
        for row in right if unit else []:
            style = {key: value for key, value in styles[row["contender"]].items() if "line" not in key}
            style["markersize"] = 9
            (shown[row["contender"]],) = ax.plot(row["median_s"] / unit, y, linestyle="none", **style)
    ax.set_xscale("log")
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(-0.6, len(labels) - 0.4)
    ax.grid(axis="both", color="0.9", zorder=0)
    ax.axvline(1, color="black", linewidth=1, zorder=1)
    ax.set_xlabel("time in units of ours (logarithmic; right of the line: slower than ours)")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    legend(figure, record, shown)


def draw_sweeps(figure: Figure, record: Record, styles: dict[str, dict[str, Any]]) -> None:
    """Time above memory, a column for each sweep; dashed grey: as the flops grow."""
    axes = figure.subplots(2, len(record["sweeps"]), squeeze=False, sharex="col", sharey="row")
    shown = {}
    for column, sweep in enumerate(record["sweeps"]):
        found = scaling.curves(sweep)
        for curve in found:
            style = styles[curve.contender]
            (shown[curve.contender],) = axes[0, column].plot(curve.sizes, curve.seconds, **style)
            mib = [max(peak, 1 << 16) / 2**20 for peak in curve.bytes]
            axes[1, column].plot(curve.sizes, mib, **style)
        for curve in found[:1]:
            anchor = curve.seconds[-1] / curve.flops[-1]
            (shown["flops"],) = axes[0, column].plot(
                curve.sizes, [anchor * flops for flops in curve.flops], "--", color="0.5", linewidth=1.2, zorder=1
            )
        axes[1, column].set_xlabel(AXES[sweep["axis"]])
        for ax in axes[:, column]:
            decorate(ax, [record["task"][sweep["axis"]] for record in sweep["records"]])
    axes[0, 0].set_ylabel("time of a call (s)")
    axes[1, 0].set_ylabel("peak memory (MiB)")
    legend(figure, record, shown)


def decorate(ax: Axes, sizes: list[int]) -> None:
    """Logarithmic axes with plain numbers."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(color="0.9", zorder=0)
    most = 5
    step = -(-len(sizes) // most)
    ax.set_xticks(sizes[::-1][::step][::-1], [f"{size:,}" for size in sizes[::-1][::step][::-1]])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_minor_locator(LogLocator(subs=()))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def legend(figure: Figure, record: Record, shown: dict[str, Any]) -> None:
    """Below all axes, in the order of the contenders."""
    names = [name for name in record["contenders"] if name in shown]
    handles, labels = [shown[name] for name in names], [record["contenders"][name]["title"] for name in names]
    if "flops" in shown:
        handles.append(shown["flops"])
        labels.append("as the flop count grows, from ours at the largest size")
    figure.legend(
        handles, labels, loc="outside lower center", ncols=max(2, int(figure.get_figwidth() / 3.6)), frameon=False
    )
