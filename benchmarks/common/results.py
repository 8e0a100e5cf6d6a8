"""Rows that carry their floor, printed as a table and stored as JSON with the machine they came from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import machine
from common.ceilings import Ceilings, Work
from common.timing import Timing

DIRECTORY = Path(__file__).resolve().parent.parent / "results"


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
    """Print one table, ratios taken to the row `unit` (default: the first); returns it for the JSON."""
    unit = unit or rows[0].contender
    base = next(row.timing for row in rows if row.contender == unit)
    records = [row.to_dict(ceilings, base) for row in rows]
    head = (
        "",
        "median ms",
        "min ms",
        f"/ {unit}",
        "floor ms: flops",
        "bytes",
        "Gflop/s",
        "of best",
        "error",
        "peak MiB",
    )
    lines = [head] + [
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
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for line in lines:
        first, *others = (text.rjust(width) for text, width in zip(line, widths, strict=True))
        print("  " + line[0].ljust(len(first)), *others, sep="  ", flush=True)
    return {"title": title, "ratios_to": unit, "rows": records}


def print_ceilings(ceilings: Ceilings) -> None:
    """One line: what every floor below is computed from."""
    rates = ", ".join(f"{kind} {ceilings.rate(kind) / 1e9:.0f}" for kind in ("fp32", "bf16", "fp64"))
    print(f"\nbest measured GEMM, Gflop/s: {rates}; copy {ceilings.bandwidth / 1e9:.1f} GB/s", flush=True)


def save(name: str, tables: Sequence[dict[str, object]], ceilings: Ceilings, output: Path | None, quick: bool) -> None:
    """Write `output`, or results/<name>.json; a quick run without `output` leaves nothing behind."""
    path = output or (None if quick else DIRECTORY / f"{name}.json")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "benchmark": name,
            "quick": quick,
            "machine": machine.describe(),
            "ceilings": ceilings.to_dict(),
            "tables": list(tables),
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
