"""JSON files that are whole at any moment: a run that is ended midway leaves its measurements so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def write(path: Path, record: Mapping[str, object]) -> None:
    """Replaces the file, and makes its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(record, indent=1) + "\n")
    whole.replace(path)
