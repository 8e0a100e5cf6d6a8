"""The alignment of each layer as a curve that can be given new values, which an animation does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ahkernels.plotting.figures import BLACK, GREY
from ahkernels.plotting.kinds import kinds_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.lines import Line2D

    from ahkernels.plotting.layer_colours import Colour
    from ahkernels.report import AlignmentReport

_LARGEST, _SMALLEST = 6.0, 2.5  # markers, in points
_ROOM = 400.0  # points that the markers of all layers may take side by side
_HEIGHT_OF_CROSS = 0.022  # above the bottom of the axes, as a part of their height


class LayerCurve:
    """A marker for each layer of a report by its kind, a ring around the peak, a cross where there is no alignment.

    Thin lines join the layers of one kind.

    Args:
        ax: The axes to draw on.
        report: The first values.
        colours: A colour for each layer; by default that of its kind.

    Attributes:
        ring: The ring around the peak.
        crosses: Those at the layers that have none.
    """

    def __init__(self, ax: Axes, report: AlignmentReport, colours: Sequence[Colour] | None = None) -> None:
        self._index, values = list(range(1, len(report) + 1)), report.cka.tolist()
        size = max(_SMALLEST, min(_LARGEST, _ROOM / max(1, len(report))))
        self._errors = ax.vlines(self._index, values, values, color=GREY, lw=1.2, zorder=2.5)
        self._kinds: list[tuple[list[int], Line2D, PathCollection]] = []
        known = any(report.kinds)
        for kind in kinds_of(report.kinds):
            x, y = [self._index[layer] for layer in kind.layers], [values[layer] for layer in kind.layers]
            (line,) = ax.plot(x, y, color=GREY if colours else kind.colour, lw=0.8, alpha=0.6, zorder=2)
            marker = kind.marker if known else "o"
            of_layers = [colours[layer] for layer in kind.layers] if colours else kind.colour
            points = ax.scatter(x, y, s=size**2, c=of_layers, marker=marker, linewidths=0, zorder=3)
            self._kinds.append((kind.layers, line, points))
            if known:
                ax.plot([], [], marker, color=GREY if colours else kind.colour, markersize=5, label=kind.label)
        # Which of these two a legend has is for the caller to say: the first report may have none.
        (self.ring,) = ax.plot([], [], "o", color=BLACK, markersize=2.2 * max(size, 4), mfc="none", zorder=4)
        (self.crosses,) = ax.plot([], [], "x", color=BLACK, markersize=max(5, size), zorder=4)
        self.crosses.set_transform(ax.get_xaxis_transform())
        self.show(report)

    def show(self, report: AlignmentReport) -> None:
        """Moves everything to the alignments of a report of the same layers."""
        values = report.cka.tolist()
        errors = [0.0] * len(values) if report.cka_standard_error is None else report.cka_standard_error.tolist()
        self._errors.set_segments(
            [[(x, y - error), (x, y + error)] for x, y, error in zip(self._index, values, errors, strict=True)]
        )
        for layers, line, points in self._kinds:
            line.set_ydata([values[layer] for layer in layers])
            points.set_offsets([(self._index[layer], values[layer]) for layer in layers])
        peak = [] if report.peak is None else [report.layers.index(report.peak)]
        self.ring.set_data([self._index[layer] for layer in peak], [values[layer] for layer in peak])
        undefined = [x for x, y in zip(self._index, values, strict=True) if math.isnan(y)]
        self.crosses.set_data(undefined, [_HEIGHT_OF_CROSS] * len(undefined))
