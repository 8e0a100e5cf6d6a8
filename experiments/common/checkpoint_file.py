"""The file of a checkpoint: what torch.save writes, and after it a digest, before which no byte of it is believed.

``torch.load`` itself reads the file, too. It looks at no checksums, and would take damaged weights for weights.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

DIGEST_LINE = re.compile(rb"\nsha256 ([0-9a-f]{64})\n")  # at the end of the file
DIGEST_LENGTH = len(b"\nsha256 ") + 64 + len(b"\n")
TABLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # which leads to no other folder
PIECE = 1 << 20  # bytes that are read at a time


def write(file: BinaryIO, content: dict[str, Any]) -> None:
    """Write the content of a checkpoint (see ``read``; of tensors and plain types), and its digest.

    Raises:
        OSError: If the file takes no more.
    """
    digesting = _Digesting(file)
    try:
        torch.save(content, digesting)
    except RuntimeError:
        if digesting.error is not None:
            raise digesting.error from None
        raise
    file.write(f"\nsha256 {digesting.digest.hexdigest()}\n".encode())


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: "state", "rows", "tables" by their names, and whether the run is "finished".

    Raises:
        ValueError: If it is none, or has changed since it was written.
        Exception: Of any kind, for a file that was made to deceive.
    """
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END) - DIGEST_LENGTH
        file.seek(max(0, length))
        line = DIGEST_LINE.fullmatch(file.read())
        if line is None:
            raise ValueError("it does not end in its digest: it is cut off, damaged, or of an earlier version")
        file.seek(0)
        digest = hashlib.sha256()
        for start in range(0, length, PIECE):
            digest.update(file.read(min(PIECE, length - start)))
        if digest.hexdigest().encode() != line[1]:
            raise ValueError("it has changed since it was written, as its digest tells")
        file.seek(0)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # whose message tells how to load it nevertheless
            raise ValueError("it has more in it than tensors and plain types") from error
    _require_parts(content)
    return content


class _Digesting:
    """A file that takes a digest of what is written to it.

    Attributes:
        digest: The digest.
        error: The error that ended the writing, which torch.save hides behind one of its own.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def _require_parts(content: Any) -> None:
    """Check what a checkpoint consists of, as anybody can write a file with a digest.

    Raises:
        ValueError: If it is anything else.
    """
    parts = {"state": dict, "rows": list, "tables": dict, "finished": bool}
    if not isinstance(content, dict) or {name: type(value) for name, value in content.items()} != parts:
        raise ValueError(f"expected {', '.join(parts)} in it")
    if "metrics" in content["tables"]:
        raise ValueError("expected no table with the name of the metrics")
    for name, rows in {"metrics": content["rows"], **content["tables"]}.items():
        if not isinstance(name, str) or not TABLE_NAME.fullmatch(name):
            raise ValueError(f"expected tables with plain names, got {name!r:.40}")
        if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
            raise ValueError(f"expected rows of numbers in the table {name!r:.40}")


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(
        isinstance(name, str) and isinstance(value, (int, float, str)) for name, value in row.items()
    )
