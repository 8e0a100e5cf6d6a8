"""A table as JSON with the machine it came from, in the form that the page of results shows."""

import json
from collections.abc import Sequence
from pathlib import Path

from common import machine

Cell = str | int | float | None


def rounded(value: float, digits: int = 3) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits}g}")


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print it, numbers to the right."""
    lines = [[*columns]] + [["" if cell is None else f"{cell}" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    print(f"\n{title}")
    for line in lines:
        cells = zip(line, widths, numeric, strict=True)
        print("  " + "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in cells).rstrip(), flush=True)


def save(
    path: Path, title: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], **raw: object
) -> None:
    """Write the table; `raw` is what it was made from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"title": title, "text": text, "columns": [*columns], "rows": [[*row] for row in rows]}
    path.write_text(json.dumps(record | {"machine": machine.describe()} | raw, indent=1) + "\n")
