"""Results as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO


def write(file: BinaryIO, content: Mapping[str, Any]) -> None:
    """Writes what `to_dict` of a report or of a history gave."""
    file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read(file: BinaryIO) -> Any:
    """Reads what was written.

    Raises:
        ValueError: For anything but JSON.
    """
    return json.loads(file.read())
