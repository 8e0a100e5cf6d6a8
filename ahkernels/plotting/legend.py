"""A legend above the axes, clear of what is drawn on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ahkernels.plotting.figures import size_in_points, text_size, width_of_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HANDLE = 3.3  # width of a handle and the space around it, in font sizes
_WIDER = 1.15  # axes are when a layout engine has put them in place


def add_legend(axes: Sequence[Axes], title: str = "") -> None:
    """Lists what has a label on axes that lie over one another, each label once, above the first of them."""
    ax, size = axes[0], text_size("legend.fontsize") * 0.9
    found = [one.get_legend_handles_labels() for one in axes]
    entries = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    if not entries and not title:
        return
    widths = [width_of_text(label, size) + _HANDLE * size for label in entries]
    legend = ax.legend(
        entries.values(),
        entries.keys(),
        title=title or None,
        fontsize=size,
        title_fontsize=size,
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        borderpad=0.2,
        handlelength=1.6,
        handletextpad=0.5,
        columnspacing=1.2,
        labelspacing=0.3,
        ncols=_columns(widths, _WIDER * size_in_points(ax)[0]),
        frameon=False,
    )
    legend.set_zorder(10)


def _columns(widths: Sequence[float], room: float) -> int:
    """The most columns that entries, listed column by column, can have."""
    for columns in range(len(widths), 1, -1):
        rows, longer = divmod(len(widths), columns)
        taken, begin = 0.0, 0
        for column in range(columns):
            end = begin + rows + (column < longer)
            taken, begin = taken + max(widths[begin:end]), end
        if taken <= room:
            return columns
    return 1
