"""The paper's figures 2 and 7: loss and alignment along training, and alignment by layer after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from experiments.common.figures import (
    GREY,
    ORANGE,
    Array,
    iteration_axis,
    layer_axis,
    layer_bar,
    layer_colours,
    layer_names,
    saved,
    table,
)
from experiments.common.store import Row

PER_OUTPUT, GLOBAL = "cka/per_output", "cka/global"  # columns of alignments with either centering
GREEN = "#009E73"  # Okabe-Ito colours
SMALL_LOSS = 0.1  # training loss at which the paper's depth sweeps measure


def alignment_hierarchy(runs: Sequence[Sequence[Row]], title: str, path: Path) -> None:
    """Draw the alignment hierarchy of one or several runs of the same configuration.

    Loss and alignment per output against iteration are on the left, with one line per layer (mean over runs).
    Alignment per output by layer at the last iteration is in the middle, below the forward Gram alone. The same with
    global centering is on the right and smaller. Several runs give their mean and a band from the least to the
    greatest. A nan leaves a gap.

    Args:
        runs: For each run, its measurements in order, with columns iteration, train_loss, test_loss,
            cka/per_output/<layer>, cka/global/<layer> and perhaps forward_cka/<layer> and backward_cka/<layer>; the
            same iterations and layers in every run.
        title: The title of the figure.
        path: The file to write.
    """
    with saved(path, (15.5, 5.4), {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}) as figure:
        grid = figure.add_gridspec(2, 3, height_ratios=(1, 2.6), width_ratios=(1.25, 1, 0.62))
        loss = figure.add_subplot(grid[0, 0])
        progress = figure.add_subplot(grid[1, 0], sharex=loss)
        forward = table(runs, "forward_cka", PER_OUTPUT)[:, -1]
        if np.isnan(forward).all():
            by_layer = figure.add_subplot(grid[:, 1])
        else:
            by_layer = figure.add_subplot(grid[1, 1])
            _draw_forward(figure.add_subplot(grid[0, 1], sharex=by_layer), forward)
        _draw_loss(loss, runs)
        _draw_progress(progress, runs, PER_OUTPUT)
        progress.set_ylabel("alignment per output (CKA)")
        layers = len(layer_names(runs[0], PER_OUTPUT))
        layer_bar(figure, progress, layers, "layer" + (f" (mean of {len(runs)} seeds)" if len(runs) > 1 else ""))
        _draw_by_layer(by_layer, runs, PER_OUTPUT)
        by_layer.set_ylabel("alignment per output (CKA)")
        beside = grid[:, 2].subgridspec(2, 1)
        with matplotlib.rc_context({"font.size": 8.5}):
            small = figure.add_subplot(beside[0])
            _draw_progress(small, runs, GLOBAL)
            small.set_title("global centering (equation 6)", fontsize=10)
            small.set_ylabel("CKA, global")
            small_by_layer = figure.add_subplot(beside[1])
            _draw_by_layer(small_by_layer, runs, GLOBAL)
            small_by_layer.set_ylabel("CKA, global")
        figure.suptitle(title, fontsize=12)


def mean_over_runs(values: Array) -> Array:
    """The mean over the first axis without values that are nan; nan where all are."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    mean: Array = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def best_measurement(runs: Sequence[Sequence[Row]]) -> int:
    """The index of the measurement whose test loss, in the mean over runs, is lowest."""
    return int(np.argmin(_column(runs, "test_loss").mean(axis=0)))


def moments(runs: Sequence[Sequence[Row]]) -> dict[str, int]:
    """The measurements that a reader compares: what to call each -> its index, none of them twice, the last one first.

    They are the last one, the one with the lowest test loss, and the first one whose training loss is below SMALL_LOSS,
    with losses in the mean over runs.
    """
    last = len(runs[0]) - 1
    found = {"at the end": last}
    small = np.flatnonzero(_column(runs, "train_loss").mean(axis=0) < SMALL_LOSS)
    named = {"at lowest test loss": best_measurement(runs)}
    if len(small):
        named[f"at training loss {SMALL_LOSS:g}"] = int(small[0])
    for name, index in named.items():
        if index not in found.values():
            found[name] = index
    return found


def _column(runs: Sequence[Sequence[Row]], name: str) -> Array:
    return np.array([[row[name] for row in rows] for rows in runs])


def _draw_loss(ax: Axes, runs: Sequence[Sequence[Row]]) -> None:
    iterations = _column(runs, "iteration")[0]
    for name, colour, style in (("train", "black", "-"), ("test", ORANGE, "--")):
        values = _column(runs, f"{name}_loss")
        ax.plot(iterations, mean_over_runs(values), style, color=colour, label=name)
        if len(runs) > 1:
            ax.fill_between(iterations, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, lw=0)
    ax.set_ylabel("loss (nats)")
    ax.set_ylim(bottom=0)
    ax.tick_params(labelbottom=False)
    ax.legend(frameon=False, ncols=2, loc="lower left", borderaxespad=0.1)


def _draw_progress(ax: Axes, runs: Sequence[Sequence[Row]], of: str) -> None:
    iterations = _column(runs, "iteration")[0]
    alignment = mean_over_runs(table(runs, of, of))
    for layer, colour in enumerate(layer_colours(alignment.shape[1])):
        ax.plot(iterations, alignment[:, layer], color=colour, lw=1.6, marker="o", ms=2.5)
    iteration_axis(ax, int(iterations[-1]))
    ax.set_ylim(bottom=0)


def _draw_forward(ax: Axes, values: Array) -> None:
    """Draw the forward Gram alone, [runs, L], in its own panel, because its n x n scale would flatten the others."""
    index = np.arange(1, values.shape[1] + 1)
    if len(values) > 1:
        ax.fill_between(index, np.fmin.reduce(values), np.fmax.reduce(values), color=GREY, alpha=0.2, lw=0)
    ax.plot(index, mean_over_runs(values), "s--", color=GREY, lw=1, ms=4, mfc="white", label="forward only, at the end")
    ax.set_ylim(0, 1.15 * np.nanmax(values))  # room for the markers
    ax.set_ylabel("CKA")
    ax.tick_params(labelbottom=False)
    ax.legend(frameon=False, loc="lower right", borderaxespad=0.1)


def _draw_by_layer(ax: Axes, runs: Sequence[Sequence[Row]], of: str) -> None:
    """Draw the alignment by layer at each of ``moments``, and per output also the backward Gram alone."""
    index = np.arange(1, len(layer_names(runs[0], of)) + 1)
    backward = mean_over_runs(table(runs, "backward_cka", of)[:, -1])
    if of == PER_OUTPUT and not np.isnan(backward).all():
        ax.plot(index, backward, "^:", color=GREY, lw=1, ms=4, mfc="white", label="backward only, at the end")
    values = table(runs, of, of)
    if len(runs) > 1:
        low, high = np.fmin.reduce(values[:, -1]), np.fmax.reduce(values[:, -1])
        ax.fill_between(index, low, high, color="C0", alpha=0.25, lw=0, label=f"range of {len(runs)} seeds at the end")
    styles = {"at the end": ("C0", "-", 2.2), "at lowest test loss": (ORANGE, "--", 1.6)}
    for name, measurement in moments(runs).items():
        colour, style, width = styles.get(name, (GREEN, "-.", 1.6))
        mean = mean_over_runs(values[:, measurement])
        peak = "none" if np.isnan(mean).all() else f"layer {np.nanargmax(mean) + 1}"
        label = f"{name} (iteration {int(runs[0][measurement]['iteration']):,}): peak at {peak}"
        if of == GLOBAL:  # the smaller panel
            label = f"{name.removeprefix('at ')}: peak {peak}"
        ax.plot(index, mean, style, color=colour, lw=width, label=label, zorder=3)
        face = layer_colours(len(index)) if colour == "C0" else colour
        size = 52 if colour == "C0" else 16
        ax.scatter(index, mean, c=face, s=size, edgecolors=colour, linewidths=1.2, zorder=4)
        _ring_peak(ax, index, mean, colour)
    layer_axis(ax, len(index))
    ax.set_ylim(0, 1.6 * ax.get_ylim()[1])  # room for the legend, which then hides nothing
    handles, labels = ax.get_legend_handles_labels()
    if of == GLOBAL:
        kept = [i for i, label in enumerate(labels) if "peak" in label]
        handles, labels = [handles[i] for i in kept], [labels[i] for i in kept]
    ax.legend(handles, labels, frameon=False, ncols=1, loc="upper right", markerscale=0.8, borderaxespad=0)


def _ring_peak(ax: Axes, index: Array, values: Array, colour: str) -> None:
    if np.isnan(values).all():
        return
    peak = int(np.nanargmax(values))
    ring = ax.scatter(index[peak], values[peak], s=190, facecolors="none", edgecolors=colour)
    ring.set(linewidth=1.6, zorder=5)
