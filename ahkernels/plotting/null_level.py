"""The alignment that layers would have by chance, behind the measured one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ahkernels.report import AlignmentReport

# A level for all layers, one for each, or an alignment by layer such as a report has.
NullLevel: TypeAlias = float | Tensor | Sequence[float] | Mapping[str, float]


def null_levels(null: NullLevel, report: AlignmentReport) -> list[float]:
    """The level of each layer.

    Args:
        null: A number for all layers, [L] values, or the report of a measurement with shuffled labels.
        report: The report of the L layers that it is for.

    Raises:
        ValueError: For levels of other layers, or a report of other samples, outputs or another centering.
        TypeError: For anything else.
    """
    layers = report.layers
    expected = f"null: expected a number, one for each of the {len(layers)} layers or a report of the same layers"
    if isinstance(null, Mapping):
        if list(null) != list(layers):
            raise ValueError(f"{expected}, got {list(null)}")
        for name in ("n", "outputs", "centering"):
            found, wanted = getattr(null, name, None), getattr(report, name)
            if found not in (None, wanted):
                raise ValueError(f"null: expected a report with {name} = {wanted}, as in the picture, got {found}")
        return [float(value) for value in null.values()]
    if isinstance(null, Real):
        return [float(null)] * len(layers)
    try:
        levels = torch.as_tensor(null, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{expected}, got {null!r}") from None
    if levels.dim() == 0:
        levels = levels.expand(len(layers))
    if levels.shape != (len(layers),):
        raise ValueError(f"{expected}, got shape {list(levels.shape)}")
    found_levels: list[float] = levels.tolist()
    return found_levels


def draw_null_levels(ax: Axes, levels: Sequence[float]) -> None:
    """Draws the levels of layers 1, 2, ... from end to end of the axes as a line, and shades what is below it."""
    if not levels:
        return
    left, right = ax.get_xlim()
    x = [left, *range(1, len(levels) + 1), right]
    y = [levels[0], *levels, levels[-1]]
    ax.fill_between(x, 0, y, color="0.85", lw=0, zorder=1)
    ax.plot(x, y, color="0.6", lw=0.8, zorder=1.5, label="null level")
