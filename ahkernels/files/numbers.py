"""Floats as JSON carries them, which knows neither nan nor inf."""

from __future__ import annotations

import math
from typing import TypeAlias

JSONNumber: TypeAlias = float | str | None


def to_json_number(value: float) -> JSONNumber:
    """None for nan, "inf" and "-inf" for those, and the number itself for all others."""
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value


def from_json_number(value: JSONNumber) -> float:
    """The number that `to_json_number` was given.

    Raises:
        ValueError: For a string that is no number.
        TypeError: For another type.
    """
    return math.nan if value is None else float(value)
