"""Draws a history that a tracker or `ahkernels measure` has written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ahkernels.files.replace import replace_file
from ahkernels.history import AlignmentHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The history and the picture."""
    parser.add_argument("history", metavar="HISTORY", help="a file that save() wrote: .json, .csv or .npz")
    parser.add_argument(
        "--output", required=True, type=Path, help="a picture (.png, .pdf, .svg) or an animation (.gif, .html)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the picture and prints its name."""
    if not arguments.output.suffix:
        raise ValueError(f"--output: expected a name with an ending such as .png, got {str(arguments.output)!r}")
    history = AlignmentHistory.load(arguments.history)
    if arguments.output.suffix in (".gif", ".html"):
        history.animate(arguments.output, progress=True)
    else:
        save_figure(history.plot()[0], arguments.output)
    print(arguments.output)


def save_figure(ax: Axes, path: Path) -> None:
    """Writes the figure that axes are in, whole or not at all."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    replace_file(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=150))
