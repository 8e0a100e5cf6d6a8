"""What pictures are made of: matplotlib, axes, numbers, and how much text has room."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ahkernels.optional_import import optional_import

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INSTALL = 'pip install "ahkernels[plot]"'
GREY = "0.45"  # of lines that lead the eye
# Okabe-Ito colours, told apart with any colour vision.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"),
)


def import_pyplot(what: str) -> ModuleType:
    """Imports matplotlib.pyplot.

    Args:
        what: The function that needs it.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    return optional_import("matplotlib.pyplot", what, INSTALL)


def axes_for(what: str, ax: Axes | None, layout: str = "constrained") -> Axes:
    """The axes that a function was given, or those of a new figure.

    Args:
        what: The function.
        ax: Its argument.
        layout: That of a new figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `ax` is anything else.
    """
    pyplot = import_pyplot(what)
    return require_axes(pyplot.subplots(layout=layout)[1] if ax is None else ax)


def require_axes(ax: object) -> Axes:
    """The axes that `ax` is; raises TypeError for anything else."""
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise TypeError(f"ax: expected the axes of a matplotlib figure, got {type(ax).__name__}")
    return ax


def as_numbers(argument: str, values: object) -> Tensor:
    """Numbers in float64 in main memory.

    Raises:
        TypeError: If there are none in `values`; the message names the argument.
    """
    try:
        return torch.as_tensor(values).detach().to("cpu", torch.float64).to_dense()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{argument}: expected a tensor of numbers, got {type(values).__name__}") from None


def size_in_points(ax: Axes) -> tuple[float, float]:
    """Width and height, as they are before a layout engine makes room for labels."""
    extent, dpi = ax.get_window_extent(), ax.figure.dpi
    return extent.width / dpi * 72, extent.height / dpi * 72


def width_of_text(text: str, size: float) -> float:
    """Width of a line of text in points, in a font of so many points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0])


def text_size(parameter: Literal["xtick.labelsize", "ytick.labelsize", "axes.labelsize", "legend.fontsize"]) -> float:
    """The font size in points that a parameter of matplotlib stands for."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    return float(FontProperties(size=rcParams[parameter]).get_size_in_points())
