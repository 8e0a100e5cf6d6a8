"""The optimiser steps that a callback measures at."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from numbers import Integral


class Schedule:
    """When to measure: at step 0 and every so many optimiser steps, or at steps of one's own.

    Args:
        every: Optimiser steps from one measurement to the next.
        steps: Optimiser steps to measure at, in any order; 0 is before training. `measurement_grid` makes them.

    Raises:
        TypeError: If both or neither are given, or one has another type.
        ValueError: If one is out of range.

    Example:
        >>> Schedule(every=10).is_due(20, last=10), Schedule(every=10).is_due(21, last=20)
        (True, False)
        >>> Schedule(steps=[0, 7]).is_due(8, last=0)  # step 7 was passed, as by an epoch that ends with two steps
        True
    """

    def __init__(self, every: int | None = None, steps: Sequence[int] | None = None) -> None:
        if (every is None) == (steps is None):
            got = "neither" if every is None else "both"
            raise TypeError(f"every, steps: expected one of them, got {got}; write every=100, say")
        if every is not None:
            if not _is_integer(every):
                raise TypeError(f"every: expected a number of optimiser steps, got {every!r}")
            if every < 1:
                raise ValueError(f"every: expected at least 1 optimiser step, got {every}")
        self._every = every
        self._steps = _sorted(steps) if steps is not None else []

    def is_due(self, step: int, last: int) -> bool:
        """Whether some step to measure at has been reached since the last measurement.

        Args:
            step: Optimiser steps so far.
            last: The step of the last measurement; -1 if there is none.
        """
        if step <= last:
            return False
        if self._every is not None:
            return step // self._every > last // self._every
        return bisect.bisect_right(self._steps, step) > bisect.bisect_right(self._steps, last)


def _sorted(steps: Sequence[int]) -> list[int]:
    try:
        found = list(steps)
    except TypeError:
        raise TypeError(f"steps: expected a sequence of optimiser steps, got {steps!r}; write [{steps!r}]") from None
    wrong = [step for step in found if not _is_integer(step)]
    if wrong:
        raise TypeError(f"steps: expected integers, got {wrong[0]!r}")
    if not found or min(found) < 0:
        got = str(min(found)) if found else "none"
        raise ValueError(f"steps: expected optimiser steps from 0 on, got {got}")
    return sorted(found)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
