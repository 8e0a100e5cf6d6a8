"""A history as a picture: alignment along training, and by layer at the last step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ahkernels.plotting.figures import BLACK, import_pyplot, require_axes
from ahkernels.plotting.layer_colours import add_layer_bar, layer_colours
from ahkernels.plotting.legend import add_legend
from ahkernels.plotting.null_level import NullLevel, null_levels
from ahkernels.plotting.report import draw_report, label_alignments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ahkernels.history import Measurement


def plot_history(
    history: Sequence[Measurement], ax: Sequence[Axes] | None = None, *, null: NullLevel | None = None
) -> Sequence[Axes]:
    """See `AlignmentTracker.plot`."""
    require_history(history, "plot()")
    report = history[-1].report
    levels = [] if null is None else null_levels(null, report)
    if ax is None:
        pyplot = import_pyplot("plot()")
        ax = pyplot.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")[1]
    try:
        left, right = ax
    except (TypeError, ValueError):
        got = f"{len(ax)}" if isinstance(ax, Sequence) or hasattr(ax, "__len__") else type(ax).__name__
        raise ValueError(f"ax: expected two axes, got {got}") from None
    left, right = require_axes(left), require_axes(right)
    steps, colours = [row.step for row in history], layer_colours(len(report))
    marker = "o" if len(steps) == 1 else None
    for layer, colour in enumerate(colours):
        left.plot(steps, [float(row.report.cka[layer]) for row in history], color=colour, marker=marker, lw=1.2)
    scale_steps(left, steps)
    label_alignments(left, report.centering)
    losses = loss_curves(history)
    if losses:
        other = left.twinx()
        draw_losses(other, steps, losses)
        add_legend([left, other])
    draw_report(right, report, levels, colours, title=f"step {steps[-1]}")
    if right.get_shared_y_axes().joined(left, right):
        right.set_ylabel("")
    add_layer_bar(right, report.layers)
    return ax


def require_history(history: Sequence[Measurement], before: str) -> None:
    """Raises ValueError if there is nothing to draw yet."""
    if not history:
        raise ValueError(f"history: expected at least one update() before {before}, got none")


def loss_curves(history: Sequence[Measurement]) -> dict[str, list[float]]:
    """Each metric with "loss" in its name at every step; nan at a step that did not have it."""
    names = dict.fromkeys(name for row in history for name in row.metrics if "loss" in name.lower())
    return {name: [row.metrics.get(name, math.nan) for row in history] for name in names}


def draw_losses(ax: Axes, steps: Sequence[int], losses: dict[str, list[float]]) -> None:
    """Draws losses in black, each with dashes of its own."""
    marker = "o" if len(steps) == 1 else None
    for index, (name, values) in enumerate(losses.items()):
        ax.plot(steps, values, ("--", ":", "-.")[index % 3], marker=marker, color=BLACK, lw=1.4, label=name)
    ax.set_ylabel("loss")


def scale_steps(ax: Axes, steps: Sequence[int]) -> None:
    """Shows training steps along x, on a logarithmic scale from the first one on that is not zero."""
    ax.set_xlabel("training step")
    positive = [step for step in steps if step > 0]
    if len(steps) == 1:
        ax.set_xticks(steps)
    elif positive:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
