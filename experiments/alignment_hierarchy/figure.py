"""The paper's figures 2 and 7: loss and alignment along training, and alignment by layer after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments.alignment_hierarchy.null_level import SHUFFLES
from experiments.common.figures import (
    GREY,
    ORANGE,
    Array,
    column,
    iteration_axis,
    layer_axis,
    layer_bar,
    layer_colours,
    layer_names,
    mean_over_runs,
    of_seeds,
    plot_range,
    saved,
    table,
)
from experiments.common.store import Row

PROBES = {"train": "", "test": "-test"}  # and what names of files have for them
SAMPLES = {"train": "training samples", "test": "test samples"}
TITLES = {"per_output": "each output centered over the samples", "global": "global centering (equation 6)"}
GREEN, CHANCE = "#009E73", "#CC79A7"  # Okabe-Ito colours
SMALL_LOSS = 0.1  # training loss at which the paper's depth sweeps measure


def alignment_hierarchy(runs: Sequence[Sequence[Row]], probe: str, title: str, path: Path) -> None:
    """Draw the alignment hierarchy of one or several runs of the same configuration on a probe.

    Losses are on top, beside the alignment of the forward Gram alone where it was measured. Below are, with each output
    centered on the left and with global centering on the right, the alignment against iteration with one line for each
    layer, and the alignment by layer at ``moments``. Several runs give their mean and a band from the least to the
    greatest. The alignment with shuffled labels is in all of these. A nan leaves a gap.

    Args:
        runs: For each run, its measurements in order, with columns iteration, train_loss, test_loss,
            <kind>/<probe>/<centering>/<layer> for the kinds cka, null, null_least and null_greatest, and perhaps
            forward_cka/<layer> and backward_cka/<layer>; the same iterations and layers in every run.
        probe: One of PROBES.
        title: The title of the figure.
        path: The file to write.
    """
    of = {centering: f"{probe}/{centering}" for centering in TITLES}
    with saved(path, (14, 13), {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}) as figure:
        grid = figure.add_gridspec(3, 2, height_ratios=(0.9, 2, 2.2))
        with_grams = probe == "train"
        loss = figure.add_subplot(grid[0, 0] if with_grams else grid[0, :])
        _draw_loss(loss, runs)
        progress, by_layer = ([figure.add_subplot(grid[row, i]) for i in range(len(TITLES))] for row in (1, 2))
        for left, right, (centering, name) in zip(progress, by_layer, TITLES.items(), strict=True):
            _draw_progress(left, runs, of[centering])
            left.set_title(name, fontsize=12)
            _draw_by_layer(right, runs, of[centering], backward=with_grams and centering == "per_output")
        for row in (progress, by_layer):
            top = max(ax.get_ylim()[1] for ax in row)  # one scale for both centerings
            for ax in row:
                ax.set_ylim(0, top)
            row[0].set_ylabel(f"alignment (CKA), {SAMPLES[probe]}")
        if with_grams:
            _draw_forward(figure.add_subplot(grid[0, 1]), table(runs, "forward_cka", f"cka/{of['global']}")[:, -1])
        layers = len(layer_names(runs[0], f"cka/{of['global']}"))
        layer_bar(figure, progress, layers, "layer" + (f" (mean of {len(runs)} seeds)" if len(runs) > 1 else ""))
        figure.suptitle(title, fontsize=12)


def best_measurement(runs: Sequence[Sequence[Row]]) -> int:
    """The index of the measurement whose test loss, in the mean over runs, is lowest."""
    return int(np.argmin(column(runs, "test_loss").mean(axis=0)))


def moments(runs: Sequence[Sequence[Row]]) -> dict[str, int]:
    """The measurements that a reader compares: what to call each -> its index, none of them twice, the last one first.

    They are the last one, the one with the lowest test loss, and the first one whose training loss is below SMALL_LOSS,
    with losses in the mean over runs.
    """
    last = len(runs[0]) - 1
    found = {"at the end": last}
    small = np.flatnonzero(column(runs, "train_loss").mean(axis=0) < SMALL_LOSS)
    named = {"at lowest test loss": best_measurement(runs)}
    if len(small):
        named[f"at training loss {SMALL_LOSS:g}"] = int(small[0])
    for name, index in named.items():
        if index not in found.values():
            found[name] = index
    return found


def _draw_loss(ax: Axes, runs: Sequence[Sequence[Row]]) -> None:
    iterations = column(runs, "iteration")[0]
    for name, colour, style in (("train", "black", "-"), ("test", ORANGE, "--")):
        values = column(runs, f"{name}_loss")
        plot_range(ax, iterations, values, ls=style, color=colour, label=f"{name} loss{of_seeds(len(runs))}")
    ax.set_ylabel("loss (nats)")
    iteration_axis(ax, int(iterations[-1]))
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, loc="upper right", borderaxespad=0.1)


def _draw_progress(ax: Axes, runs: Sequence[Sequence[Row]], of: str) -> None:
    iterations = column(runs, "iteration")[0]
    alignment = mean_over_runs(table(runs, f"cka/{of}", f"cka/{of}"))
    for layer, colour in enumerate(layer_colours(alignment.shape[1])):
        ax.plot(iterations, alignment[:, layer], color=colour, lw=1.6, marker="o", ms=2.5)
    mean, least, greatest = (
        table(runs, f"{kind}/{of}", f"cka/{of}") for kind in ("null", "null_least", "null_greatest")
    )
    mean, least, greatest = np.nanmean(mean, (0, 2)), np.nanmin(least, (0, 2)), np.nanmax(greatest, (0, 2))
    _draw_chance(
        ax, iterations, mean, least, greatest, " and layers" if len(runs) == 1 else f", layers and {len(runs)} seeds"
    )
    iteration_axis(ax, int(iterations[-1]))
    ax.set_ylim(0, 1.15 * max(np.nanmax(alignment), np.nanmax(greatest)))  # room for the legend
    ax.legend(frameon=False, loc="upper left", borderaxespad=0, fontsize=9.5)


def _draw_chance(ax: Axes, x: Array, mean: Array, least: Array, greatest: Array, others: str) -> None:
    """Draw the alignment with shuffled labels against x."""
    ax.fill_between(x, least, greatest, color=CHANCE, alpha=0.3, lw=0)
    label = f"shuffled labels: mean and range of {SHUFFLES} shuffles{others}"
    ax.plot(x, mean, "--", color=CHANCE, lw=1.6, label=label)


def _draw_forward(ax: Axes, values: Array) -> None:
    """Draw the forward Gram alone, [runs, L], in its own panel, because its n x n scale would flatten the others."""
    index = np.arange(1, values.shape[1] + 1)
    if len(values) > 1:
        ax.fill_between(index, np.fmin.reduce(values), np.fmax.reduce(values), color=GREY, alpha=0.2, lw=0)
    label = "forward Gram alone, at the end"
    ax.plot(index, mean_over_runs(values), "s--", color=GREY, lw=1, ms=4, mfc="white", label=label)
    layer_axis(ax, len(index))
    ax.set_ylim(0, 1.15 * np.nanmax(values))  # room for the markers
    ax.set_ylabel("CKA")
    ax.legend(frameon=False, loc="lower right", borderaxespad=0.1)


def _draw_by_layer(ax: Axes, runs: Sequence[Sequence[Row]], of: str, backward: bool) -> None:
    """Draw the alignment by layer at each of ``moments``, perhaps beside that of the backward Gram alone."""
    values, null, least, greatest = (
        table(runs, f"{kind}/{of}", f"cka/{of}") for kind in ("cka", "null", "null_least", "null_greatest")
    )
    index = np.arange(1, values.shape[2] + 1)
    seeds = f" and {len(runs)} seeds" if len(runs) > 1 else ""
    _draw_chance(
        ax,
        index,
        mean_over_runs(null[:, -1]),
        np.fmin.reduce(least[:, -1]),
        np.fmax.reduce(greatest[:, -1]),
        f"{seeds}, at the end",
    )
    if backward:
        gram = mean_over_runs(table(runs, "backward_cka", f"cka/{of}")[:, -1])
        ax.plot(index, gram, "^:", color=GREY, lw=1, ms=4, mfc="white", label="backward Gram alone, at the end")
    if len(runs) > 1:
        low, high = np.fmin.reduce(values[:, -1]), np.fmax.reduce(values[:, -1])
        ax.fill_between(index, low, high, color="C0", alpha=0.25, lw=0, label=f"range of {len(runs)} seeds at the end")
    styles = {"at the end": ("C0", "-", 2.2), "at lowest test loss": (ORANGE, "--", 1.6)}
    for name, measurement in moments(runs).items():
        colour, style, width = styles.get(name, (GREEN, "-.", 1.6))
        mean = mean_over_runs(values[:, measurement])
        peak = "none" if np.isnan(mean).all() else f"layer {np.nanargmax(mean) + 1}"
        label = f"{name} (iteration {int(runs[0][measurement]['iteration']):,}): peak at {peak}"
        ax.plot(index, mean, style, color=colour, lw=width, label=label, zorder=3)
        face = layer_colours(len(index)) if colour == "C0" else colour
        size = 52 if colour == "C0" else 16
        ax.scatter(index, mean, c=face, s=size, edgecolors=colour, linewidths=1.2, zorder=4)
        _ring_peak(ax, index, mean, colour)
    layer_axis(ax, len(index))
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=9.5)


def _ring_peak(ax: Axes, index: Array, values: Array, colour: str) -> None:
    if np.isnan(values).all():
        return
    peak = int(np.nanargmax(values))
    ring = ax.scatter(index[peak], values[peak], s=190, facecolors="none", edgecolors=colour)
    ring.set(linewidth=1.6, zorder=5)
