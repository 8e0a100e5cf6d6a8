"""The `precision` argument."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch

Precision: TypeAlias = Literal["highest", "high", "medium"]

# What torch.backends calls them; "none" is that nothing has been set.
_PRECISIONS = {"none": "highest", "ieee": "highest", "tf32": "high", "bf16": "medium"}

# The user's setting for "cpu" or "cuda" while `products_in_float32` has changed it, and how many threads need that.
_LOCK = threading.Lock()
_CHANGED: dict[str, tuple[str, int]] = {}


def resolve_precision(precision: str | None) -> str:
    """The given precision, or for None that of torch's own products.

    That is torch.get_float32_matmul_precision(), or where torch.backends has other settings for devices, such as
    torch.backends.cuda.matmul.fp32_precision, the one with the fewest digits.

    float64 factors are always computed in float64. For the others,

    - "highest" has the quality of fp32;
    - "high" splits each fp32 number into two bf16 or TF32 parts where the device gains by it, and otherwise is
      "highest";
    - "medium" multiplies bf16 numbers and sums in fp32 where the device has such products, and otherwise is "highest".

    Raises:
        ValueError: For anything else.
    """
    if precision is None:
        settings = [_PRECISIONS[setting] for setting in (_setting("cpu"), _setting("cuda"))]
        return max(settings, key=list(_PRECISIONS.values()).index)
    if precision not in ("highest", "high", "medium"):
        raise ValueError(f'precision: expected "highest", "high", "medium" or None, got {precision!r}')
    return precision


def products_are_in_float32(device: torch.device) -> bool:
    """Whether torch multiplies float32 matrices on a device without rounding their numbers to fewer digits."""
    return _PRECISIONS[_setting(device.type)] == "highest"


@contextmanager
def products_in_float32(device: torch.device) -> Iterator[None]:
    """Has torch multiply float32 matrices on a device without rounding their numbers, whatever the user has set.

    The setting is that of all threads, and is the user's again once the last of those that need it leaves.
    """
    kind = _kind(device.type)
    with _LOCK:
        of_user, threads = _CHANGED.get(kind, (_setting(kind), 0))
        changed = _PRECISIONS[of_user] != "highest"
        if changed:
            _CHANGED[kind] = of_user, threads + 1
            _matmul(kind).fp32_precision = "ieee"
    try:
        yield
    finally:
        if changed:
            with _LOCK:
                of_user, threads = _CHANGED[kind]
                _CHANGED[kind] = of_user, threads - 1
                if threads == 1:
                    _matmul(kind).fp32_precision = of_user
                    del _CHANGED[kind]


def _setting(device: str) -> str:
    """What the user has set."""
    changed = _CHANGED.get(_kind(device))
    return str(_matmul(device).fp32_precision) if changed is None else changed[0]


def _kind(device: str) -> str:
    return "cpu" if device == "cpu" else "cuda"


def _matmul(device: str) -> Any:
    return (torch.backends.mkldnn if device == "cpu" else torch.backends.cuda).matmul


def coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The floating-point dtype with the fewest digits."""
    return max(dtypes, key=lambda one: torch.finfo(one).eps)
