"""A figure to draw on, written as PNG: the same drawing gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}


@contextmanager
def saved(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Writes the figure, of this size in inches, when the block ends."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=130)
