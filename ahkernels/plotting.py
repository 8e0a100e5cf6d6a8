"""Pictures of reports and trackers, drawn with matplotlib where it is installed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from ahkernels.centering import Centering
from ahkernels.optional_import import optional_import

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ahkernels.history import Measurement
    from ahkernels.report import AlignmentReport

# Okabe-Ito colours: told apart with any colour vision.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#E69F00", "#009E73"
_MOST_NAMES = 16  # more layers than this are labelled by number


def plot_report(report: AlignmentReport, ax: Axes | None) -> Axes:
    """See `AlignmentReport.plot`."""
    if ax is None:
        ax = _pyplot().subplots(layout="constrained")[1]
    lines = [("tangent kernel", report.cka, _BLUE, "o-")]
    if report.forward_cka is not None:
        lines.append(("forward Gram", report.forward_cka, _ORANGE, "s--"))
    if report.backward_cka is not None:
        lines.append(("backward Gram", report.backward_cka, _GREEN, "^:"))
    index = list(range(1, len(report) + 1))
    for name, values, colour, style in lines:
        ax.plot(index, values.tolist(), style, color=colour, label=name, markersize=5)
    if len(lines) > 1:
        ax.legend()
    if len(report) <= _MOST_NAMES:
        ax.set_xticks(index, report.layers)
        if sum(map(len, report.layers)) > 40:  # too long to stand side by side
            for label in ax.get_xticklabels():
                label.set(rotation=40, ha="right", rotation_mode="anchor")
        ax.set_xlabel("layer")
    else:
        ax.set_xlabel("layer index (input to output)")
    ax.set_ylabel(_axis_label(report.centering))
    ax.update_datalim([(1, 0)])  # the axis starts at zero, and still grows with what is drawn later
    ax.autoscale_view()
    return ax


def plot_history(history: Sequence[Measurement], axes: Sequence[Axes] | None) -> Sequence[Axes]:
    """See `AlignmentTracker.plot`."""
    if not history:
        raise ValueError("history: expected at least one update() before plot(), got none")
    pyplot = _pyplot()
    report = history[-1].report
    if axes is None:
        alone = report.forward_cka is None  # Grams may align far better, and would flatten the left
        axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=alone, layout="constrained")[1]
    if len(axes) != 2:
        raise ValueError(f"axes: expected two, got {len(axes)}")
    left, right = axes
    steps, depth = [row.step for row in history], len(report)

    colours = pyplot.cm.ScalarMappable(pyplot.Normalize(1, max(depth, 2)), "viridis")
    shades = [colours.to_rgba(index) for index in range(1, depth + 1)]
    marker = "o" if len(steps) == 1 else ""
    for name, shade in zip(report.layers, shades, strict=True):
        left.plot(steps, [row.report[name] for row in history], color=shade, label=name, marker=marker)
    left.set_xlabel("training step")
    left.set_ylabel(_axis_label(report.centering))
    _plot_losses(history, left)
    positive = [step for step in steps if step > 0]
    if positive:
        left.set_xscale("symlog", linthresh=positive[0], linscale=0.5)

    plot_report(report, right)
    right.scatter(range(1, depth + 1), report.cka.tolist(), s=45, c=shades, zorder=3)
    right.set_title(f"step {steps[-1]}")
    if right.get_shared_y_axes().joined(left, right):
        right.set_ylabel("")
    right.figure.colorbar(colours, ax=right, label="layer index")
    return axes


def _plot_losses(history: Sequence[Measurement], axes: Axes) -> None:
    """Metrics with "loss" in their name, in black on a second axis at the right."""
    names = dict.fromkeys(name for row in history for name in row.metrics if "loss" in name.lower())
    if not names:
        return
    other = axes.twinx()
    for name, dashes in zip(names, ["--", ":", "-."] * len(names), strict=False):
        losses = [row.metrics.get(name, math.nan) for row in history]
        other.plot([row.step for row in history], losses, dashes, color="black", label=name)
    other.set_ylabel("loss")
    # Above the panel, clear of the lines.
    other.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)


def _axis_label(centering: Centering) -> str:
    return "alignment with the labels (CKA)" + (", per output" if centering == "per_output" else "")


def _pyplot() -> ModuleType:
    """matplotlib.pyplot, imported when a plot is asked for and not before."""
    return optional_import("matplotlib.pyplot", "plot()", 'pip install "ahkernels[plot]"')
