"""The paper's figures 16 and 17: alignment by layer of networks trained layer by layer and end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments.common.figures import ORANGE, layer_axis, peak_of, saved, table
from experiments.common.measuring import CENTERING_NAMES
from experiments.common.store import Row

COLUMNS = 3
BLUE = "#0072B2"  # Okabe-Ito colours


@dataclass(frozen=True)
class Outcome:
    """One network: what to say of it, and its measurements before and after training."""

    title: str
    rows: Sequence[Row]


def layerwise_maximisation(outcomes: Sequence[Outcome], title: str, path: Path) -> None:
    """Draw a panel for every network, all of one scale.

    Args:
        outcomes: At least one network, with columns cka/train/<centering>/<layer>.
        title: The title of the figure.
        path: The file to write.
    """
    columns = min(len(outcomes), COLUMNS)
    lines = -(-len(outcomes) // columns)
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with saved(path, (max(8.5, 4.7 * columns), 1.9 + 3.6 * lines), style) as figure:
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for ax, one in zip(axes.flat, outcomes, strict=False):
            _draw(ax, one)
        for ax in axes.flat[len(outcomes) :]:
            ax.axis("off")
        axes[0, 0].set_ylim(0, 1.1 * max(ax.dataLim.y1 for ax in axes.flat[: len(outcomes)]))  # room for the ring
        for ax in axes[:, 0]:
            ax.set_ylabel("alignment with the labels (CKA)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(title, fontsize=12)


def _draw(ax: Axes, one: Outcome) -> None:
    for centering, colour, marker in (("per_output", BLUE, "o"), ("global", ORANGE, "s")):
        columns, name = f"cka/train/{centering}", CENTERING_NAMES[centering]
        before, after = table([one.rows], columns, columns)[0]
        index = np.arange(1, len(after) + 1)
        ax.plot(index, before, "--", color=colour, marker=marker, lw=1.2, ms=4, mfc="white", label=f"before, {name}")
        ax.plot(index, after, "-", color=colour, marker=marker, lw=2.2, ms=5, label=f"after training, {name}")
        label = "peaks after training" if centering == "global" else None
        ax.plot(*peak_of(after), "o", ms=14, mfc="none", mec="black", mew=1.4, ls="none", label=label)
    layer_axis(ax, len(index))
    ax.set_title(one.title, fontsize=11)
