"""A disk that is full, a process that dies, or a power cut, at every call by which code writes files."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

ABSENT = b"(absent)"


class Died(BaseException):
    """The process has ended: it does nothing more, not even clean up."""


class Disk:
    """Watches and disturbs what is done to files by pathlib and os.fsync.

    A power cut leaves of a file what was in it at its last fsync, or anything that was written since. Of the names in a
    folder it leaves those at the folder's last fsync, with none, some or all of the changes since, in their order.

    Args:
        patch: Undoes it all at its end.
        watched: The file whose content after a power cut is followed.
        at: The number of the call that fails, and does half of its work if it is a write; None for no failure.
        dies: Whether the process ends with that call; otherwise the disk is full.
        without: "file" or "folder", to ignore every fsync of that kind as code would that forgets it.

    Attributes:
        calls: The calls so far.
        left: What a power cut right after each of the calls may leave in the watched file.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        watched: Path,
        at: int | None = None,
        *,
        dies: bool = False,
        without: str = "",
    ) -> None:
        self.calls: list[str] = []
        self.left: list[set[bytes]] = []
        self._watched, self._at, self._dies, self._without, self._dead = watched, at, dies, without, False
        self._numbers: dict[int, int] = {}  # of files by that of the file system, which gives them anew
        self._contents: list[set[bytes]] = []  # by the number of the file
        self._durable: dict[Path, int | None] = {}
        self._changes: list[
            tuple[Path, int | None]
        ] = []  # names and what they stand for, since the folder's last fsync
        for path in watched.parent.iterdir():
            if path.is_file():
                self._durable[path] = self._added(path.stat().st_ino)
                self._contents[-1].add(path.read_bytes())
        self._real = {name: getattr(Path, name) for name in ("open", "replace", "unlink", "hardlink_to")}
        for name in self._real:
            method = getattr(self, f"_{name}")
            patch.setattr(Path, name, lambda path, *args, _method=method, **options: _method(path, *args, **options))
        patch.setattr(os, "fsync", self._fsync)

    def possible(self) -> set[bytes]:
        """What a power cut now may leave in the watched file."""
        names, found = dict(self._durable), set()
        for path, number in [(self._watched, self._durable.get(self._watched)), *self._changes]:
            names[path] = number
            now = names[self._watched]
            found |= {ABSENT} if now is None else self._contents[now]
        return found

    # ---- what is called

    def call(self, name: str) -> None:
        """Count a call, which fails if it is its turn."""
        if self._dead:
            raise Died
        self.calls.append(name)
        if len(self.calls) - 1 == self._at:
            self._dead = self._dies
            raise Died if self._dies else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def note(self) -> None:
        """Take down what a power cut may leave now."""
        self.left.append(self.possible())

    def wrote(self, handle: int) -> None:
        """Look at a file that has been written to."""
        with self._real["open"](Path(f"/proc/self/fd/{handle}"), "rb") as file:
            self._contents[self._numbers[os.fstat(handle).st_ino]].add(file.read())
        self.note()

    def _added(self, of_file_system: int) -> int:
        self._numbers[of_file_system] = len(self._contents)
        self._contents.append(set())
        return self._numbers[of_file_system]

    def _number(self, path: Path) -> int:
        return self._numbers[path.stat().st_ino]

    def _open(self, path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not set(mode) & set("wxa"):
            return self._real["open"](path, mode, *args, **options)
        self.call(f"open {path.name}")
        new = not path.exists()
        file = self._real["open"](path, mode, 0 if "b" in mode else 1, *args[1:], **options)
        if new:
            self._changes.append((path, self._added(os.fstat(file.fileno()).st_ino)))
        self.wrote(file.fileno())
        return _File(self, file)

    def _replace(self, path: Path, target: Path) -> Path:
        self.call(f"replace {target.name}")
        number = self._number(path)
        found: Path = self._real["replace"](path, target)
        self._changes += [(Path(target), number), (path, None)]
        self.note()
        return found

    def _hardlink_to(self, path: Path, target: Path) -> None:
        self.call(f"link {path.name}")
        self._real["hardlink_to"](path, target)
        self._changes.append((path, self._number(path)))
        self.note()

    def _unlink(self, path: Path, missing_ok: bool = False) -> None:
        self.call(f"unlink {path.name}")
        self._real["unlink"](path, missing_ok=missing_ok)
        self._changes.append((path, None))
        self.note()

    def _fsync(self, handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        if kind == self._without:
            return
        self.call(f"fsync {kind}")
        if kind == "folder":
            self._durable |= dict(self._changes)
            self._changes.clear()
            self.note()
        else:
            self._contents[self._numbers[os.fstat(handle).st_ino]].clear()
            self.wrote(handle)


class _File:
    """A file without a buffer of its own, so that a process that dies loses nothing that it has written."""

    def __init__(self, disk: Disk, file: Any) -> None:
        self._disk, self._file = disk, file

    def write(self, data: Any) -> int:
        try:
            self._disk.call("write")
        except BaseException:
            self._file.write(data[: len(data) // 2])
            raise
        self._file.write(data)
        self._file.flush()
        self._disk.wrote(self._file.fileno())
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        number: int = self._file.fileno()
        return number

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._disk.call("close")
