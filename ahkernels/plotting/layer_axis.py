"""An axis along the layers of a network: their names where few, otherwise the blocks that they are in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ahkernels.plotting.blocks import Block, blocks_of, shared_path
from ahkernels.plotting.figures import size_in_points, text_size, width_of_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis

_ANGLE = 40  # degrees, of names along x that are too long to stand side by side
_LEVEL: dict[str, Any] = {"rotation": 0, "ha": "center", "rotation_mode": "default"}
_SLANTED: dict[str, Any] = {"rotation": _ANGLE, "ha": "right", "rotation_mode": "anchor"}
_LONGEST_NAME = 24  # characters
# Least distances of two lines of text, of two that are slanted, and of two words in a line, in font sizes.
_LINE, _SLANTED_LINE, _GAP = 1.3, 1.1 / math.sin(math.radians(_ANGLE)), 0.6
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # between the numbers of blocks that are shown
_NARROWEST_BAND = 5.0  # points
_PAD = 3.5  # points between an axis and its labels


def shown(name: str, longest: int = _LONGEST_NAME) -> str:
    """The name of a layer, without its beginning where it has more characters."""
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def label_layers(axis: XAxis | YAxis, layers: Sequence[str]) -> list[Block]:
    """Labels the layers 1, 2, ... along an axis of which they take all: by name where there is room for all names.

    Otherwise numbers of blocks stand next to the axis, and the names of their families beyond. What does not fit is
    left out.

    Args:
        axis: The x-axis or y-axis of axes, which have a size already.
        layers: Their names.

    Returns:
        The blocks that are labelled; none where the layers are labelled by name.
    """
    room = _Room.along(axis, len(layers))
    axis.remove_overlapping_locs = False
    axis.set_tick_params(which="both", pad=_PAD)
    every = [Block(name, None, index, index + 1) for index, name in enumerate(_short_names(layers))]
    shown_layers, style = room.for_names(every)
    if len(shown_layers) == len(layers):
        axis.set_ticks([layer.middle for layer in every], [layer.family for layer in every], **style)
        axis.set_ticks([], minor=True)
        return []
    blocks = blocks_of(layers)
    numbers = room.for_numbers(blocks)
    axis.set_ticks([block.middle for block in numbers], [str(block.number) for block in numbers], minor=True)
    families, style = room.for_names(families_of(blocks))
    axis.set_ticks([family.middle for family in families], [shown(family.family) for family in families], **style)
    if _grouped(blocks):
        axis.set_tick_params(which="minor", length=0)
    axis.set_tick_params(which="major", length=0, pad=_PAD + (room.beyond_numbers if numbers else 0))
    return blocks


def separate_blocks(ax: Axes, blocks: Sequence[Block]) -> None:
    """Shades every other block along x, and separates families by lines.

    Args:
        ax: The axes.
        blocks: Those that `label_layers` has returned for the x-axis.
    """
    if _grouped(blocks) and size_in_points(ax)[0] >= _NARROWEST_BAND * len(blocks):
        for block in blocks[1::2]:
            ax.axvspan(block.start + 0.5, block.stop + 0.5, color="0.95", zorder=0, lw=0)
    for family in families_of(blocks)[1:]:
        ax.axvline(family.start + 0.5, color="0.75", lw=0.8, zorder=0.5)


def families_of(blocks: Sequence[Block]) -> list[Block]:
    """The families of blocks that stand beside one another, each as one block; those without a name are left out."""
    runs = [list(members) for _, members in itertools.groupby(blocks, key=lambda block: block.family)]
    return [Block(run[0].family, None, run[0].start, run[-1].stop) for run in runs if run[0].family]


def _grouped(blocks: Sequence[Block]) -> bool:
    """Whether blocks have two layers or more on average."""
    return bool(blocks) and blocks[-1].stop >= 2 * len(blocks)


def _short_names(layers: Sequence[str]) -> list[str]:
    """Names without the module that all of them are in, if one is long."""
    shared = len(shared_path(layers)) if max(map(len, layers), default=0) > _LONGEST_NAME else 0
    return [shown(f"…{name[shared + 1 :]}" if shared else name) for name in layers]


@dataclass(frozen=True)
class _Room:
    """The room for labels along an axis.

    Attributes:
        upright: Whether it is a y-axis.
        size: The size of its font, in points.
        pitch: The distance of two layers, in points.
    """

    upright: bool
    size: float
    pitch: float

    @classmethod
    def along(cls, axis: XAxis | YAxis, layers: int) -> _Room:
        upright = axis.axis_name == "y"
        size = text_size("ytick.labelsize" if upright else "xtick.labelsize")
        return cls(upright, size, size_in_points(axis.axes)[upright] / max(1, layers))

    def for_names(self, blocks: Sequence[Block]) -> tuple[list[Block], dict[str, Any]]:
        """The blocks whose families have room, and how the labels stand."""
        if self.upright:
            return self._apart(blocks, [_LINE * self.size] * len(blocks)), {}
        kept = self._apart(blocks, [self._width(shown(block.family)) for block in blocks])
        if len(kept) == len(blocks):
            return kept, _LEVEL
        return self._apart(blocks, [_SLANTED_LINE * self.size] * len(blocks)), _SLANTED

    def for_numbers(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks whose numbers are shown, as many as have room: 0, 50, 100, ..., or 1, 51, 101, ... of odd ones."""
        numbers = [(block.number, block) for block in blocks if block.number is not None]
        for step in _STEPS:
            round_ones = [block for number, block in numbers if number % step == 0]
            some = round_ones or [block for number, block in numbers if number % step == 1]
            breadths = [_LINE * self.size if self.upright else self._width(str(block.number)) for block in some]
            if some and len(self._apart(some, breadths)) == len(some):
                return some
        return []

    @property
    def beyond_numbers(self) -> float:
        """The room that numbers take across the axis, in points."""
        return self._width("000") if self.upright else _LINE * self.size

    def _width(self, text: str) -> float:
        return width_of_text(text, self.size) + _GAP * self.size

    def _apart(self, blocks: Sequence[Block], breadths: Sequence[float]) -> list[Block]:
        """The blocks whose labels, of given breadths in points, do not meet those of blocks with more layers."""
        kept: list[tuple[float, float, Block]] = []  # where a label begins and ends, and its block
        for block, breadth in sorted(zip(blocks, breadths, strict=True), key=lambda one: one[0].start - one[0].stop):
            begin, end = (block.middle * self.pitch + sign * breadth / 2 for sign in (-1, 1))
            if all(end <= other_begin or other_end <= begin for other_begin, other_end, _ in kept):
                kept.append((begin, end, block))
        return [block for _, _, block in sorted(kept, key=lambda one: one[0])]
