"""What is known of each network: a record, a row of the table, and the numbers of the claim."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.common import tables

COLUMNS = ["library", "version", "network", "layers", "fallback", "of kinds", "ours", "Jacobians", "by", "ratio"]
COLUMNS += ["K by autograd", "K", "A", "K, float64", "A, float64"]


@dataclass
class Row:
    """What is known of one network; None where it is not."""

    library: str
    version: str
    network: str
    refusal: str | None = None  # why the package does not measure it
    layers: int | None = None
    fallback: dict[str, int] = field(default_factory=dict)  # layers without a rule, by their kind
    ours_s: float | None = None
    jacobians_s: float | None = None
    jacobians_by: dict[str, int] = field(default_factory=dict)  # layers that were measured, by the way that worked
    no_vmap: str | None = None  # why torch.func does not take the samples at once
    checked: list[str] = field(default_factory=list)  # layers held against float64
    refusal_float64: str | None = None  # why the package does not measure it in float64
    no_float64: str | None = None  # why the library does not run in float64
    autograd_difference: float | None = None  # of kernels by autograd in float32 from those in float64
    kernel_difference: float | None = None  # of ours; without float64, from those by autograd in float32
    alignment_difference: float | None = None
    kernel_difference_float64: float | None = None
    alignment_difference_float64: float | None = None
    from_jacobians: float | None = None  # the largest difference of an alignment from that by Jacobians in float32
    undefined: int = 0  # layers whose kernel is zero or constant

    def cells(self) -> list[tables.Cell]:
        """The row of the table."""
        head: list[tables.Cell] = [self.library, self.version, self.network]
        if self.refusal is not None or self.ours_s is None or not self.jacobians_s:
            return [*head, None, None, self.refusal, *[None] * (len(COLUMNS) - 6)]
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.fallback.items())
        times = [tables.rounded(1e3 * seconds) for seconds in (self.ours_s, self.jacobians_s)]
        ratio = tables.rounded(self.jacobians_s / self.ours_s)
        differences = [
            None if value is None else f"{value:.0e}"
            for value in (
                *(self.autograd_difference, self.kernel_difference, self.alignment_difference),
                *(self.kernel_difference_float64, self.alignment_difference_float64),
            )
        ]
        by = ", ".join(self.jacobians_by)
        return [*head, self.layers, sum(self.fallback.values()), kinds, *times, by, ratio, *differences]


def summary(rows: Sequence[Row]) -> dict[str, object]:
    """The numbers of the claim."""
    measured = [row for row in rows if row.refusal is None]
    ratios = [row.jacobians_s / row.ours_s for row in measured if row.jacobians_s and row.ours_s]
    layers = sum(row.layers or 0 for row in measured)
    without_rule = sum(sum(row.fallback.values()) for row in measured)
    return {
        "libraries": len({row.library for row in rows}),
        "networks": len(rows),
        "measured_as_they_are": len(measured),
        "layers": layers,
        "layers_without_rule": without_rule,
        "median_ratio": statistics.median(ratios) if ratios else None,
        "smallest_ratio": min(ratios, default=None),
        "kinds_without_rule": dict(sum((Counter(row.fallback) for row in measured), Counter()).most_common()),
    }
