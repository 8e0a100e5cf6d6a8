"""Tables as lines of text with their columns aligned, and as records that the page of results shows."""

from __future__ import annotations

from collections.abc import Sequence

Cell = str | int | float | None


def rounded(value: float, digits: int = 3) -> float:
    """The value with so many significant digits."""
    return float(f"{value:.{digits}g}")


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], numeric: Sequence[bool] = ()) -> None:
    """Prints a table.

    Args:
        title: The line above it.
        columns: The names of the columns.
        rows: A cell for each column.
        numeric: Which columns are aligned to the right; by default those without a text.
    """
    lines = [[*columns]] + [["" if cell is None else f"{cell}" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = numeric or [all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    print(f"\n{title}")
    for line in lines:
        cells = zip(line, widths, numeric, strict=True)
        print("  " + "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in cells).rstrip(), flush=True)


def record(title: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> dict[str, object]:
    """A table in the form that the page of results shows, which also wants the `machine`."""
    return {"title": title, "text": text, "columns": [*columns], "rows": [[*row] for row in rows]}
