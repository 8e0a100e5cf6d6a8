"""Archives, as torch.save and numpy.savez write them, and their checksums, at which readers do not always look."""

from __future__ import annotations

import zipfile
from pathlib import Path

_BEGIN = b"PK\x03\x04"


def require_checksums(path: Path) -> None:
    """Checks an archive against its own checksums. Other files, such as those of before torch 1.6, have none.

    Raises:
        ValueError: If a part of it has changed since it was written.
        zipfile.BadZipFile: If it is torn.
    """
    with path.open("rb") as file:
        if file.read(len(_BEGIN)) != _BEGIN:
            return
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} has changed since it was written, as its checksum tells")
