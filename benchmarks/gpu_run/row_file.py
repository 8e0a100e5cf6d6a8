"""A JSON file that is whole after every row: a benchmark that is ended midway leaves what it has measured."""

from __future__ import annotations

import json
from pathlib import Path


class RowFile:
    """Writes `{**head, "rows": [...]}` at once and again with every row."""

    def __init__(self, path: Path, **head: object) -> None:
        self.path = path
        self.rows: list[dict[str, object]] = []
        self.record = head | {"rows": self.rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, text: str, **row: object) -> None:
        """Writes a row, and prints what it says."""
        self.rows.append(row)
        self._write()
        print(text, flush=True)

    def _write(self) -> None:
        whole = self.path.with_suffix(".part")
        whole.write_text(json.dumps(self.record, indent=1) + "\n")
        whole.replace(self.path)
