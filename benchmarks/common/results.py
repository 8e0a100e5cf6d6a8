"""Rows that carry their floor: printed as a table, and kept as numbers for the JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common import tables
from benchmarks.common.ceilings import Ceilings, Work
from benchmarks.common.timing import Timing


@dataclass
class Row:
    """One contender at one size. `work` is the least the job needs, the same for all who do the same job."""

    contender: str
    timing: Timing
    work: Work
    error: float | None = None  # relative to the fp64 reference
    peak: int | None = None  # bytes above model and factors

    def to_dict(self, ceilings: Ceilings, unit: Timing) -> dict[str, object]:
        flops, moved = ceilings.floor(self.work)
        return {
            "contender": self.contender,
            "median_s": self.timing.median,
            "min_s": self.timing.min,
            "rounds_s": self.timing.rounds,
            "ratio": self.timing.median / unit.median,
            "floor_flops_s": flops,
            "floor_bytes_s": moved,
            "useful_flops_per_s": self.work.flops / self.timing.median,
            "fraction_of_ceiling": flops / self.timing.median,
            "relative_error": self.error,
            "peak_bytes": self.peak,
        }


def report(title: str, rows: Sequence[Row], ceilings: Ceilings, unit: str | None = None) -> dict[str, object]:
    """Prints one table, with ratios to the row `unit` (by default the first), and returns it for the JSON file."""
    unit = unit or rows[0].contender
    base = next(row.timing for row in rows if row.contender == unit)
    records = [row.to_dict(ceilings, base) for row in rows]
    head = ("", "median ms", "min ms", f"/ {unit}", "floor ms: flops", "bytes")
    head += ("Gflop/s", "of best", "error", "peak MiB")
    lines = [
        (
            record["contender"],
            f"{1e3 * record['median_s']:.2f}",
            f"{1e3 * record['min_s']:.2f}",
            f"{record['ratio']:.2f}",
            f"{1e3 * record['floor_flops_s']:.2f}",
            f"{1e3 * record['floor_bytes_s']:.2f}",
            f"{record['useful_flops_per_s'] / 1e9:.1f}",
            f"{100 * record['fraction_of_ceiling']:.0f}%",
            "" if record["relative_error"] is None else f"{record['relative_error']:.1e}",
            "" if record["peak_bytes"] is None else f"{record['peak_bytes'] / 2**20:.0f}",
        )
        for record in records
    ]
    tables.show(title, head, lines, numeric=[False] + [True] * (len(head) - 1))
    return {"title": title, "ratios_to": unit, "rows": records}
