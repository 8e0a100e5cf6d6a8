"""The stack of calls, by which a warning points at the line of the user."""

from __future__ import annotations

import sys


def level_of_the_caller() -> int:
    """The stack level of the line outside of the package, as the caller of this function counts it."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "ahkernels":
        level, frame = level + 1, frame.f_back
    return level
