"""Colours of layers by their depth, and the bar beside a picture that says whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from ahkernels.plotting.layer_axis import label_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colour: TypeAlias = tuple[float, ...]

_LIGHTEST = 0.92  # of viridis: the yellows beyond are faint on white


def layer_colours(count: int) -> list[Colour]:
    """A colour for each layer, from dark to light, which a reader without colour vision can order, too."""
    from matplotlib import colormaps

    viridis = colormaps["viridis"]
    return [tuple(viridis(_LIGHTEST * index / max(1, count - 1))) for index in range(count)]


def add_layer_bar(ax: Axes | Sequence[Axes], layers: Sequence[str]) -> None:
    """Adds a bar with the colour of each layer, labelled like an axis along the layers, which takes room from axes."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    count = len(layers)
    edges = [index + 0.5 for index in range(count + 1)]
    first = ax[0] if isinstance(ax, Sequence) else ax
    colours = ScalarMappable(BoundaryNorm(edges, count), ListedColormap(layer_colours(count)))
    bar = first.figure.colorbar(colours, ax=ax, pad=0.02, aspect=25, spacing="proportional")
    bar.ax.tick_params(which="both", length=0)
    bar.ax.set_title("layer", fontsize="medium", loc="right")  # a layout leaves no room for more at the right
    label_layers(bar.ax.yaxis, layers)
