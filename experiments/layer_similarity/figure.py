"""Matrices of similarity between layers, and similarity with the start along training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from experiments.common.figures import Array, iteration_axis, layer_bar, layer_colours, layer_ticks, saved
from experiments.common.store import Row

COLUMNS = 3
COLOURS = "magma"  # others than those of layers
NORM = Normalize(0, 1)
UNDEFINED = "0.8"  # grey, not of the colour map


def layer_similarity(
    matrices: Mapping[str, Array],
    labels: Mapping[str, tuple[str, str]],
    rows: Sequence[Row],
    title: str,
    path: Path,
) -> None:
    """Draw a heatmap for each matrix, and last each layer's similarity with its start against iteration.

    Args:
        matrices: Matrices [L, L] by heading, with values in [0, 1]; a nan is grey.
        labels: The x and y labels of matrices whose rows and columns are not simply layers.
        rows: Measurements in order, with columns iteration and with_start/<layer>.
        title: The title of the figure.
        path: The file to write.
    """
    lines = -(-(len(matrices) + 1) // COLUMNS)
    with saved(path, (13.5, 0.9 + 3.9 * lines), {"font.size": 11}) as figure:
        axes = figure.subplots(lines, COLUMNS, squeeze=False)
        panels = list(axes.flat)
        for letter, ax, (heading, values) in zip("abcdefgh", panels, matrices.items(), strict=False):
            _draw_matrix(ax, values, *labels.get(heading, ("layer", "layer")))
            ax.set_title(f"({letter}) {heading}", fontsize=11)
        last = panels[len(matrices)]
        _draw_progress(figure, last, rows)
        last.set_title(f"({'abcdefgh'[len(matrices)]}) each kernel with its start, in training", fontsize=11)
        for ax in panels[len(matrices) + 1 :]:
            ax.axis("off")
        colours = ScalarMappable(NORM, matplotlib.colormaps[COLOURS])
        bar = figure.colorbar(colours, ax=panels, location="left", pad=0.01, aspect=40, fraction=0.03)
        bar.set_label("alignment of two kernels (CKA), in the matrices")
        figure.suptitle(title, fontsize=12)


def _draw_matrix(ax: Axes, values: Array, x: str, y: str) -> None:
    count = len(values)
    colours = matplotlib.colormaps[COLOURS].with_extremes(bad=UNDEFINED)
    edge = (0.5, count + 0.5)
    ax.imshow(values, cmap=colours, norm=NORM, extent=(*edge, *edge[::-1]), interpolation="nearest")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(layer_ticks(count))
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def _draw_progress(figure: Figure, ax: Axes, rows: Sequence[Row]) -> None:
    iterations = np.array([row["iteration"] for row in rows])
    layers = [name for name in rows[0] if name.startswith("with_start/")]
    for layer, colour in zip(layers, layer_colours(len(layers)), strict=True):
        ax.plot(iterations, [row[layer] for row in rows], color=colour, lw=1.6, marker="o", ms=2.5)
    iteration_axis(ax, int(iterations[-1]))
    ax.set_ylim(0, 1.03)  # room for the markers at 1
    ax.set_ylabel("alignment with the kernel at the start (CKA)")
    layer_bar(figure, ax, len(layers), "layer")
