"""A file of results that is whole after every row."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.gpu.row_file import RowFile


def test_rows_are_whole_after_each(tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "new" / "rows.json", benchmark="any")
    for count in range(3):
        assert json.loads(rows.path.read_text()) == {"benchmark": "any", "rows": [{"i": i} for i in range(count)]}
        rows.add("one more", i=count)
    assert [path.name for path in rows.path.parent.iterdir()] == ["rows.json"]
