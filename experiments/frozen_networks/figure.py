"""The paper's figure 18: alignment by layer along training of networks that are frozen but for their last layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments.common.figures import GREY, Array, layer_axis, layer_colours, saved, table
from experiments.common.store import Row

FILES = {"per_output": "frozen_networks.png", "global": "frozen_networks-global.png"}
MOST_LINES = 7  # measurements in a panel, log-spaced as they are
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe-Ito colours of the noise scales
STYLES = (("-", "o"), ("--", "s"), (":", "D"))  # styles of the noise scales, whose lines may lie on each other


@dataclass(frozen=True)
class Outcome:
    """One run: its width and noise scale, finite measurements in order, and what to say of it."""

    width: int
    noise: float
    rows: Sequence[Row]
    remark: str

    def curves(self, statistic: str) -> Array:
        """A statistic by measurement and layer, [rows, L]."""
        values: Array = table([self.rows], statistic, statistic)[0]
        return values


def frozen_networks(outcomes: Sequence[Outcome], centering: str, title: str, path: Path) -> None:
    """Draw alignment by layer along training for every run, and below, for every width, that of either Gram alone.

    Args:
        outcomes: At least one run, with columns iteration, cka/<centering>/<layer>, forward_cka/<layer> and
            backward_cka/<centering>/<layer>. Layers without an alignment are left out.
        centering: One of FILES.
        title: The title of the figure.
        path: The file to write.
    """
    widths, scales = (sorted({getattr(one, name) for one in outcomes}) for name in ("width", "noise"))
    layers = outcomes[0].curves(f"cka/{centering}").shape[1]
    heights = [*[3.2] * len(scales), 2.9, 2.0]
    size = (max(9.5, 3.2 + 4.3 * len(widths)), 1.0 + sum(heights))
    with saved(path, size, {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}) as figure:
        axes = figure.subplots(len(heights), len(widths), squeeze=False, sharey="row", height_ratios=heights)
        *training, backward, forward = axes
        for one in outcomes:
            row, column = scales.index(one.noise), widths.index(one.width)
            _draw_training(training[row][column], one, centering)
            _draw_backward(backward[column], one, centering, row)
            _draw_forward(forward[column], one)
        for column, width in zip(axes.T, widths, strict=True):
            column[-2].set_title(f"width {width:,}: backward Gram alone", fontsize=11)
            column[-1].set_title(f"width {width:,}: forward Gram alone", fontsize=11)
            for ax in column:
                layer_axis(ax, layers)
        top = 1.1 * max(ax.dataLim.y1 for line in training for ax in line)  # one scale for all noise scales
        for line in training:
            line[0].set_ylim(0, top)
        for line in (backward, forward):
            line[0].set_ylim(0, 1.1 * max(ax.dataLim.y1 for ax in line))  # room for the markers
        for line in axes:
            line[0].set_ylabel("CKA with the labels")
        for line, heading in ((training[0], "iteration"), (backward, ""), (forward, "")):
            found = {label: h for ax in line for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
            line[-1].legend(
                found.values(), found.keys(), title=heading, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False
            )
        figure.suptitle(title, fontsize=12)


def _draw_training(ax: Axes, one: Outcome, centering: str) -> None:
    """Darker lines are earlier; the peaks before training and at the end are ringed."""
    curves = one.curves(f"cka/{centering}")
    index = np.arange(1, curves.shape[1] + 1)
    chosen = sorted(set(np.linspace(0, len(curves) - 1, MOST_LINES).round().astype(int).tolist()))
    for row, colour in zip(chosen, layer_colours(len(chosen)), strict=True):
        an_end = row in (0, len(curves) - 1)
        label = f"{one.rows[row]['iteration']:,.0f}"
        ax.plot(index, curves[row], "o-", color=colour, lw=2.6 if an_end else 1.4, ms=4, label=label)
        if an_end and not np.isnan(curves[row]).all():
            peak = int(np.nanargmax(curves[row]))
            ring = "peak, first and last" if row else None
            ax.plot(index[peak], curves[row, peak], "o", ms=13, mfc="none", mec=colour, mew=1.8, label=ring)
    ax.set_title(f"width {one.width:,}, noise scale {one.noise:g}\n{one.remark}", fontsize=11)


def _draw_backward(ax: Axes, one: Outcome, centering: str, scale: int) -> None:
    """Draw the start, where the noise scale is nothing but a factor, and the end."""
    curves = one.curves(f"backward_cka/{centering}")
    index = np.arange(1, curves.shape[1] + 1)
    ax.plot(index, curves[0], "^-", color=GREY, lw=1.4, ms=5, label="at the start")
    line, marker = STYLES[scale % len(STYLES)]
    colour, label = COLOURS[scale % len(COLOURS)], f"at the end,\nnoise scale {one.noise:g}"
    ax.plot(index, curves[-1], line, marker=marker, color=colour, lw=2.0, ms=6, mfc="none", mew=1.5, label=label)


def _draw_forward(ax: Axes, one: Outcome) -> None:
    """Draw the start and the end, which are the same: two marks on each other."""
    curves = one.curves("forward_cka")
    index = np.arange(1, curves.shape[1] + 1)
    ax.plot(index, curves[0], "^-", color=GREY, lw=1.4, ms=5, label="at the start")
    ax.plot(index, curves[-1], "o", color="black", ms=10, mfc="none", label="at the end")
