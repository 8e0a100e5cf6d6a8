"""Results as JSON, with a digest of all else as the last entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

from ahkernels.files.digest import DIGEST, digest_of, require_digest


def write(file: BinaryIO, content: Mapping[str, Any]) -> None:
    """Writes what `to_dict` of a report or of a history gave."""
    file.write(f"{_text({**content, DIGEST: digest_of([_text(content)])})}\n".encode())


def read(file: BinaryIO) -> dict[str, Any]:
    """Reads what was written.

    Raises:
        ValueError: For anything but JSON, and for content that is not that of the digest.
    """
    content = json.loads(file.read())
    if not isinstance(content, dict):
        raise ValueError(f"expected names with values, got {type(content).__name__}")
    require_digest(content.pop(DIGEST, None), [_text(content)])
    return content


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, allow_nan=False)
