"""The warning about kernels and labels without an alignment: a call tells all that it finds in a single one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from contextvars import ContextVar, Token
from typing import NamedTuple

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


_COLLECTED: ContextVar[list[Finding] | None] = ContextVar("_COLLECTED", default=None)


class OneWarning:
    """Warns once, at the end of a block of code, of all that it finds, except for what another block told before.

    Example:
        >>> one_warning = OneWarning()
        >>> with one_warning:
        ...     tell([])  # nothing was found
    """

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()  # of what, and of which layer
        self._before: list[Token[list[Finding] | None]] = []

    def __enter__(self) -> None:
        self._before.append(_COLLECTED.set([]))

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        found = _COLLECTED.get() or []
        _COLLECTED.reset(self._before.pop())
        new = [one for one in dict.fromkeys(found) if (one.what, one.layer) not in self._told]
        if error is None and new:
            _warn(new)
            self._told.update((one.what, one.layer) for one in new)


def tell(found: Sequence[Finding]) -> None:
    """Warns of findings, or leaves that to the `OneWarning` around."""
    collected = _COLLECTED.get()
    if collected is not None:
        collected.extend(found)
    elif found:
        _warn(found)


def _warn(found: Sequence[Finding]) -> None:
    alike: dict[tuple[str, str], list[str]] = {}
    known = set(found)
    for one in found:
        if one != ("kernel", "zero", one.layer) or Finding.unreached(one.layer) not in known:
            alike.setdefault((one.what, one.found), []).append(one.layer)
    parts = [_part(what, state, layers) for (what, state), layers in alike.items()]
    message = f"{'; '.join(parts)}, so that the alignment is not defined (nan)"
    warnings.warn(message, DegenerateKernelWarning, stacklevel=_level_of_the_caller())


def _part(what: str, found: str, layers: Sequence[str]) -> str:
    if layers == [""]:
        return f"{what} is {found}"
    if len(layers) == 1:
        return f"{what} of layer {layers[0]!r} is {found}"
    names = ", ".join(repr(layer) for layer in layers[:_MOST_NAMES])
    rest = f" and {len(layers) - _MOST_NAMES} more" if len(layers) > _MOST_NAMES else ""
    return f"{what} is {found} for {len(layers)} layers ({names}{rest})"


def _level_of_the_caller() -> int:
    """The stack level of the line outside of the package, as `_warn` counts it."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "ahkernels":
        level, frame = level + 1, frame.f_back
    return level
