"""A JSON file that is whole after every row: a benchmark that is ended midway leaves its measurements so far."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import json_file


class RowFile:
    """Writes `{**head, "rows": [...]}` at once and again with every row."""

    def __init__(self, path: Path, **head: object) -> None:
        self.path = path
        self.rows: list[dict[str, object]] = []
        self.record = head | {"rows": self.rows}
        self._write()

    def add(self, text: str, **row: object) -> None:
        """Writes a row, and prints the text."""
        self.rows.append(row)
        self._write()
        print(text, flush=True)

    def _write(self) -> None:
        json_file.write(self.path, self.record)
