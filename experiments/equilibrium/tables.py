"""Tables of results: from columns to rows, and to a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.figures import Array
from experiments.common.store import Row, csv_of, write_atomically

Line = dict[str, Any]  # a row that may have words, too


def save(output: Path, name: str, rows: Sequence[Row | Line]) -> None:
    """Write a table as NAME.csv."""
    write_atomically(output / f"{name}.csv", csv_of(rows))


def table(**columns: Any) -> list[Row]:
    """Turn columns [k] into k rows."""
    return [
        dict(zip(columns, line, strict=True))
        for line in zip(*(np.asarray(c).tolist() for c in columns.values()), strict=True)
    ]


def columns(rows: Sequence[Row | Line], *names: str) -> list[Array]:
    """Columns of a table as numbers, [rows] each."""
    return [np.array([row[name] for row in rows], dtype=np.float64) for name in names]
