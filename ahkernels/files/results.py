"""Reports and histories in files, in the format that the ending of the file's name says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ahkernels.files import csv_format, json_format, npz_format
from ahkernels.files.parsing import reason_of
from ahkernels.files.replace import replace_file

_FORMATS: dict[str, ModuleType] = {".json": json_format, ".csv": csv_format, ".npz": npz_format}


def write_result(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes what `to_dict` of a report or of a history gave. The file is replaced whole or not at all.

    Raises:
        ValueError: If the name does not end in .json, .csv or .npz.
        FileNotFoundError: If the folder does not exist.
    """
    form = _format(path)
    replace_file(path, lambda file: form.write(file, content))


def read_result(path: str | os.PathLike[str]) -> Any:
    """Reads what `to_dict` had given before it was written, or anything else that the file has.

    Raises:
        ValueError: If the name does not end in .json, .csv or .npz, the file has another format, or it has changed
            since it was written.
        FileNotFoundError: If there is no such file.
    """
    form = _format(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: expected a file that save() wrote, got {str(path)!r}, which is none")
    with Path(path).open("rb") as file:
        try:
            return form.read(file)
        except Exception as error:  # whatever a damaged file makes of the readers
            wrote = "a file that save() wrote"
            raise ValueError(f"path: expected {wrote}, got {str(path)!r} ({reason_of(error)})") from error


def _format(path: str | os.PathLike[str]) -> ModuleType:
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(f"path: expected a name that ends in {', '.join(_FORMATS)}, got {str(path)!r}")
    return _FORMATS[suffix]
