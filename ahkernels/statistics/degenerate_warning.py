"""The warning about kernels and labels without an alignment: a call tells all that it finds in a single one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ahkernels.stack import level_of_the_caller

# Names of layers that a warning lists.
_MOST_NAMES = 8


class DegenerateKernelWarning(UserWarning):
    """An alignment is not defined, because a kernel is zero or constant, or labels are; its value is nan."""


class Finding(NamedTuple):
    """What has no alignment, and why.

    Attributes:
        what: Such as "kernel" or "y".
        found: What it is, such as "zero".
        layer: The name of the layer that it belongs to, if any.
    """

    what: str
    found: str
    layer: str = ""

    @classmethod
    def unreached(cls, layer: str) -> Finding:
        """A layer that the output does not depend on; it stands for the finding that its kernel is zero."""
        return cls("kernel", "zero (the output does not depend on it)", layer)


class OneWarning:
    """Warns of all that a call has found at once, and of nothing that a call before has found."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()  # of what, and of which layer

    def warn(self, found: Iterable[Finding | None]) -> None:
        """Warns of what was found; None stands for nothing."""
        new = {one: None for one in found if one is not None and (one.what, one.layer) not in self._told}
        alike: dict[tuple[str, str], list[str]] = {}
        for one in new:
            if one != ("kernel", "zero", one.layer) or Finding.unreached(one.layer) not in new:
                alike.setdefault((one.what, one.found), []).append(one.layer)
        parts = [_part(what, state, layers) for (what, state), layers in alike.items()]
        if parts:
            message = f"{'; '.join(parts)}, so that the alignment is not defined (nan)"
            warnings.warn(message, DegenerateKernelWarning, stacklevel=level_of_the_caller())
        self._told.update((one.what, one.layer) for one in new)


def _part(what: str, found: str, layers: Sequence[str]) -> str:
    if layers == [""]:
        return f"{what} is {found}"
    if len(layers) == 1:
        return f"{what} of layer {layers[0]!r} is {found}"
    names = ", ".join(repr(layer) for layer in layers[:_MOST_NAMES])
    rest = f" and {len(layers) - _MOST_NAMES} more" if len(layers) > _MOST_NAMES else ""
    return f"{what} is {found} for {len(layers)} layers ({names}{rest})"
