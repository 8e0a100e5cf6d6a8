"""A history as an animation: alignment by layer at each step, beside the loss."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from ahkernels.files.replace import replace_file
from ahkernels.optional_import import optional_import
from ahkernels.plotting.figures import BLACK, INSTALL
from ahkernels.plotting.history import draw_losses, loss_curves, require_history, scale_steps
from ahkernels.plotting.legend import add_legend
from ahkernels.plotting.report import UNDEFINED, draw_curve, peak_label

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D

    from ahkernels.history import Measurement

_LAST = 1.5  # seconds that the last frame stays
_MOST_IN_HTML = 1 << 12  # MiB; frames beyond would be left out


def animate_history(
    history: Sequence[Measurement],
    path: str | os.PathLike[str],
    *,
    fps: int = 5,
    dpi: float = 100,
    progress: bool = False,
) -> None:
    """Writes an animation of the alignment by layer along training, a frame for each measurement.

    Beside it are the metrics that have "loss" in their name, if there are some. Axes are the same in all frames, and
    the first alignments stay as grey dots. If there are several centerings, the first is drawn. The file is replaced
    whole or not at all.

    Args:
        history: Measurements of the same layers, such as `tracker.history`.
        path: The file, which ends with .gif, or with .html for a page with controls.
        fps: Frames per second.
        dpi: Pixels per inch, of 10 x 4.4 inches with losses and 6.4 x 4.4 without.
        progress: Whether to show a progress bar on stderr.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is nothing to draw yet, `path` ends otherwise, or `fps` or `dpi` is not positive.
        FileNotFoundError: If the folder does not exist.
    """
    require_history(history, "animate()")
    path = Path(path).resolve()
    if path.suffix not in (".gif", ".html"):
        raise ValueError(f"path: expected a file that ends with .gif or .html, got {path.name!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: expected a file in an existing folder, got {path}")
    for name, value in {"fps": fps, "dpi": dpi}.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value!r}")
    optional_import("matplotlib", "animate()", INSTALL)
    from matplotlib.animation import FuncAnimation, HTMLWriter, PillowWriter

    gif = path.suffix == ".gif"
    frames = [*range(len(history)), *([len(history) - 1] * round(_LAST * fps) if gif else [])]
    writer = PillowWriter(fps=fps) if gif else HTMLWriter(fps=fps, embed_frames=True, embed_limit=_MOST_IN_HTML)
    picture = _Picture(history, dpi)
    animation = FuncAnimation(picture.figure, picture.show, frames, cache_frame_data=False)
    with tempfile.TemporaryDirectory() as folder:  # writers of animations want the name of a file
        drawn = Path(folder) / path.name
        with tqdm(total=len(frames), desc="frames", unit="frame", disable=not progress) as bar:
            animation.save(drawn, writer, dpi=dpi, progress_callback=lambda *_: bar.update())
        replace_file(path, lambda file: file.write(drawn.read_bytes()))


class _Picture:
    """The picture of which an animation shows one measurement after the other.

    Args:
        history: Its measurements.
        dpi: Pixels per inch.

    Attributes:
        figure: The figure.
    """

    def __init__(self, history: Sequence[Measurement], dpi: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._history, first = history, history[0].report
        losses, steps = loss_curves(history), [row.step for row in history]
        widths = [1.7, 1] if losses else [1]
        self.figure = Figure((10.0 if losses else 6.4, 4.4), dpi=dpi, layout="constrained")
        FigureCanvasAgg(self.figure)
        self._ax, *beside = self.figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
        self._curve = draw_curve(self._ax, first)
        self._curve.ring.set_label("peak")
        self._curve.crosses.set_label(UNDEFINED if any(row.report.cka.isnan().any() for row in history) else "_")
        index, at_first = range(1, len(first) + 1), first.cka.tolist()
        self._ax.plot(index, at_first, ".", color="0.7", markersize=3, zorder=1, label=f"step {steps[0]}")
        self._ax.set_ylim(*_limits([value for row in history for value in row.report.cka.tolist()]))
        add_legend([self._ax], self._title(0))
        self._marks: list[tuple[Line2D, list[float]]] = []
        for ax in beside:
            draw_losses(ax, steps, losses)
            scale_steps(ax, steps)
            add_legend([ax])
            self._marks = [(ax.plot([], [], "o", color=BLACK)[0], values) for values in losses.values()]
        for _ in range(2):  # a layout with legends beside the axes settles in the second drawing
            self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")  # axes stay where they are

    def show(self, frame: int) -> list[Artist]:
        """Shows the measurement with an index."""
        row = self._history[frame]
        self._curve.show(row.report)
        self._ax.get_legend().set_title(self._title(frame))
        for mark, values in self._marks:
            mark.set_data([row.step], [values[frame]])
        return []

    def _title(self, frame: int) -> str:
        row = self._history[frame]
        return ", ".join([f"step {row.step}", *filter(None, [peak_label(row.report)])])


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis for all values, of which some may be nan, and zero; up to one if all are nan."""
    known = [value for value in values if not math.isnan(value)] or [1.0]
    low, high = min(0.0, *known), max(0.0, *known)
    margin = 0.05 * (high - low or 1.0)
    return low - margin, high + margin
