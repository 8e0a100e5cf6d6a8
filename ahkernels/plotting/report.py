"""A report as a picture: alignment by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ahkernels.centering import Centering
from ahkernels.plotting.figures import PURPLE, SKY, axes_for, size_in_points, text_size, width_of_text
from ahkernels.plotting.layer_axis import label_layers, separate_blocks, shown
from ahkernels.plotting.layer_curve import LayerCurve
from ahkernels.plotting.legend import add_legend
from ahkernels.plotting.null_level import NullLevel, draw_null_levels, null_levels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ahkernels.plotting.layer_colours import Colour
    from ahkernels.report import AlignmentReport

UNDEFINED = "not defined (nan)"  # in legends
_LONGEST_PEAK = 40  # characters of its name
_MARGIN = 0.012  # at the ends of the x-axis, as a part of the layers
_HEIGHT_LEFT = 0.85  # by a legend above the axes
_GRAMS = "Gram alignment"  # label of the axis at the right


def plot_report(report: AlignmentReport, ax: Axes | None = None, *, null: NullLevel | None = None) -> Axes:
    """See `AlignmentReport.plot`."""
    levels = [] if null is None else null_levels(null, report)
    ax = axes_for("plot()", ax)
    draw_report(ax, report, levels)
    return ax


def draw_report(
    ax: Axes, report: AlignmentReport, levels: Sequence[float], colours: Sequence[Colour] | None = None, title: str = ""
) -> None:
    """Draws a report with all that belongs to it.

    Args:
        ax: The axes to draw on.
        report: The report.
        levels: The alignment of each layer by chance; none are not drawn.
        colours: A colour for each layer; by default that of its kind.
        title: Stands above the legend.
    """
    curve = draw_curve(ax, report, colours)
    curve.ring.set_label(peak_label(report) or "_")
    curve.crosses.set_label(UNDEFINED if report.cka.isnan().any() else "_")
    draw_null_levels(ax, levels)
    add_legend([ax, *_draw_grams(ax, report)], title)


def draw_curve(ax: Axes, report: AlignmentReport, colours: Sequence[Colour] | None = None) -> LayerCurve:
    """Draws the alignments of a report and labels the axes; see `draw_report`."""
    right = ax.get_xlim()[1] if ax.has_data() else 0.0
    curve = LayerCurve(ax, report, colours)
    margin = max(0.5, _MARGIN * len(report))
    ax.set_xlim(1 - margin, max(len(report) + margin, 1 + margin, right))
    separate_blocks(ax, label_layers(ax.xaxis, report.layers))
    ax.set_xlabel("layer, from input to output")
    label_alignments(ax, report.centering)
    error = 0.0 if report.cka_standard_error is None else report.cka_standard_error.nan_to_num()
    # The axis starts at zero, and still grows with what comes later.
    ax.update_datalim([(1, 0), *_ends(report.cka - error), *_ends(report.cka + error)])
    ax.autoscale_view(scalex=False)
    return curve


def peak_label(report: AlignmentReport) -> str:
    """The peak in words; "" if there is none."""
    return f"peak: {shown(report.peak, _LONGEST_PEAK)}" if report.peak else ""


def label_alignments(ax: Axes, centering: Centering) -> None:
    """Labels the y-axis, along which there are alignments, in as many words as it has room for."""
    end = ", per output" if centering == "per_output" else ""
    long, short = f"alignment with the labels (CKA){end}", f"alignment (CKA){end}"
    fits = width_of_text(long, text_size("axes.labelsize")) <= _HEIGHT_LEFT * size_in_points(ax)[1]
    ax.set_ylabel(long if fits else short)


def _draw_grams(ax: Axes, report: AlignmentReport) -> list[Axes]:
    """Draws the alignments of Grams on an axis of their own, which may be far larger."""
    found = [
        ("forward Gram", report.forward_cka, SKY, "--"),
        ("backward Gram", report.backward_cka, PURPLE, ":"),
    ]
    if all(values is None for _, values, _, _ in found):
        return []
    other = _twin(ax)
    for label, values, colour, style in found:
        known = [] if values is None else [(x, y) for x, y in enumerate(values.tolist(), 1) if not math.isnan(y)]
        if values is not None:
            other.plot([x for x, _ in known], [y for _, y in known], style, color=colour, lw=1.6, label=label)
            other.update_datalim([(1, 0), *_ends(values)])
    other.autoscale_view(scalex=False)
    return [other]


def _twin(ax: Axes) -> Axes:
    """Axes over others with a y-axis of their own; those of an earlier report, if there are some."""
    for other in ax.figure.axes:
        if other is not ax and other.get_ylabel() == _GRAMS and other.get_position().bounds == ax.get_position().bounds:
            return other
    twin = ax.twinx()
    twin.set_ylabel(_GRAMS)
    return twin


def _ends(values: Tensor) -> list[tuple[float, float]]:
    """The least and the greatest of values that are known, as places; an alignment of one where none is."""
    known = [value for value in values.tolist() if not math.isnan(value)]
    return [(1, min(known)), (1, max(known))] if known else [(1, 1)]
