"""Whether two runs came to the same numbers, bit by bit."""

from __future__ import annotations

from typing import Any

import torch

from ahkernels import AlignmentTracker


def same(a: Any, b: Any) -> bool:
    """Tensors, or dicts and lists of them and of numbers."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def same_history(one: AlignmentTracker, other: AlignmentTracker) -> bool:
    """All but the certificates, which say how many calls of the process ago a capture was looked at."""
    return same(_measured(one), _measured(other))


def _measured(tracker: AlignmentTracker) -> list[Any]:
    rows = tracker.state_dict()["measurements"]
    for row in rows:
        for report in row["reports"].values():
            del report["certificate"]
    return rows
