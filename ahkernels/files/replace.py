"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_OF_NAME = 40  # characters of the file's own name in that of its temporary file, which may not be too long
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.tmp", re.DOTALL)


def replace_file(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Writes a file whole or, on any failure, leaves what was there.

    The content is on the disk, under its name, when this returns. After a crash or a power cut at any moment there is
    the old content or the new. A process that is killed leaves one of `temporary_files` at worst, which is in nobody's
    way.

    Args:
        path: The file; through a link, what it leads to.
        write: Writes the content.

    Raises:
        FileNotFoundError: If the folder does not exist.
        OSError: If the file cannot be written, as on a full disk; the message names it.
    """
    path = Path(path).resolve()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: expected a file in an existing folder, got {path}; make the folder first")
    temporary = path.with_name(f".{path.name[:_OF_NAME]}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # the first error counts
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"{path} cannot be written ({reason}); it is as it was") from error
        raise
    _sync_folder(path)


def temporary_files(folder: Path) -> Iterator[Path]:
    """The files in a folder that `replace_file` has not put in place yet, or that a killed process has left."""
    return (path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name))


def _sync_folder(path: Path) -> None:
    """Puts the name of a file on the disk, where the file system has a call for it."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            reason = f"{path} is written, but may be lost in a power cut ({error.strerror})"
            raise OSError(error.errno, reason) from error
