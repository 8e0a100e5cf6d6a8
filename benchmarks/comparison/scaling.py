"""How cost grows: exponents of time, memory and flops over the largest sizes of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ahkernels.signal_propagation import fit_power_law

LEAST = 3  # sizes in a fit


@dataclass(frozen=True)
class Curve:
    """A contender in a sweep, at the sizes it has a right value for: seconds and bytes; and the flops of the task."""

    contender: str
    title: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    bytes: tuple[int, ...]
    flops: tuple[float, ...]
    stop: str | None  # why there is no larger size

    @property
    def fitted(self) -> tuple[int, ...]:
        """The larger half of the sizes, three at least: small ones show the overhead of calls."""
        return self.sizes[-max(LEAST, -(-len(self.sizes) // 2)) :]

    def exponent(self, values: Sequence[float]) -> float | None:
        """The exponent of these values, by least squares in the logarithms; None for too few sizes."""
        largest = self.fitted
        points = [(size, value) for size, value in zip(largest, values[-len(largest) :], strict=True) if value > 0]
        return fit_power_law(*zip(*points, strict=True)).exponent if len(points) >= LEAST else None


def curves(sweep: dict[str, Any]) -> list[Curve]:
    """The curve of every contender that has a size, in the order of the rows."""
    found: dict[str, dict[str, Any]] = {}
    for record in sweep["records"]:
        size = record["task"][sweep["axis"]]
        for row in record["rows"]:
            of_one = found.setdefault(row["contender"], {"title": row["title"], "points": [], "stop": None})
            if row["outcome"] in ("ok", "estimate"):
                of_one["points"].append((size, row["median_s"], row["peak_bytes"], record["work"]["flops"]))
                of_one["stop"] = None
            elif row["outcome"] != "no" and of_one["stop"] is None:
                of_one["stop"] = row["reason"]
    return [
        Curve(name, one["title"], *zip(*one["points"], strict=True), stop=one["stop"])
        for name, one in found.items()
        if one["points"]
    ]
