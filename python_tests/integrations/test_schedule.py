"""Schedule: which optimiser steps are measured, however they arrive."""

from __future__ import annotations

import numpy as np
import pytest

from ahkernels.integrations.schedule import Schedule


def measured(schedule, arriving):
    found, last = [], -1
    for step in arriving:
        if schedule.is_due(step, last):
            found.append(step)
            last = step
    return found


@pytest.mark.parametrize(
    ("schedule", "arriving", "expected"),
    [
        (Schedule(every=3), range(10), [0, 3, 6, 9]),
        (Schedule(every=1), range(4), [0, 1, 2, 3]),
        (Schedule(every=3), [0, 0, 1, 2, 3, 3, 3, 4], [0, 3]),  # repeated, while gradients are accumulated
        (Schedule(every=3), range(0, 13, 2), [0, 4, 6, 10, 12]),  # two optimisers
        (Schedule(every=100), [50, 60, 110], [50, 110]),  # a run that begins in the middle
        (Schedule(steps=[0, 1, 10]), range(12), [0, 1, 10]),
        (Schedule(steps=(10, 1)), range(12), [1, 10]),
        (Schedule(steps=[1, 2, 3, 7]), [0, 4, 5, 8], [4, 8]),  # steps that are passed at once are measured once
        (Schedule(steps=np.array([2, 4])), range(6), [2, 4]),
    ],
)
def test_what_is_measured(schedule, arriving, expected):
    assert measured(schedule, arriving) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "every, steps: expected one of them, got neither"),
        ({"every": 1, "steps": [1]}, TypeError, "every, steps: expected one of them, got both"),
        ({"every": 1.5}, TypeError, "every: expected a number of optimiser steps, got 1.5"),
        ({"every": True}, TypeError, "every: expected a number of optimiser steps, got True"),
        ({"every": 0}, ValueError, "every: expected at least 1 optimiser step, got 0"),
        ({"steps": 5}, TypeError, "steps: expected a sequence of optimiser steps, got 5"),
        ({"steps": [1, "2"]}, TypeError, "steps: expected integers, got '2'"),
        ({"steps": []}, ValueError, "steps: expected optimiser steps from 0 on, got none"),
        ({"steps": [3, -1]}, ValueError, "steps: expected optimiser steps from 0 on, got -1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error) as caught:
        Schedule(**arguments)
    assert str(caught.value).startswith(message)
