"""A file is replaced whole or not at all: on a full disk, in a process that dies, and in a power cut, at every call."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from faulty_disk import Died, Disk

from ahkernels.files.replace import replace_file, temporary_files

OLD, NEW = b"what was there", b"what comes in its place"
Replace = Callable[[Path, Callable[[BinaryIO], object]], None]


def write(file: BinaryIO) -> None:
    file.write(NEW[:7])
    file.write(NEW[7:])


def in_place(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """What nobody should do."""
    with path.open("wb") as file:
        write(file)


def existing(folder: Path) -> Path:
    path = folder / "run.json"
    path.write_bytes(OLD)
    return path


def power_cuts(path: Path, replace: Replace, without: str = "") -> tuple[list[set[bytes]], set[bytes]]:
    """What a power cut may leave after each call while a file is replaced, and once that has ended."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, path, without=without)
        replace(path, write)
        return disk.left, disk.possible()


def test_a_power_cut_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    during, after = power_cuts(existing(tmp_path), replace_file)
    assert len(during) > 5 and all(left <= {OLD, NEW} for left in during)
    assert after == {NEW}


@pytest.mark.parametrize(
    ("replace", "without"),
    [(in_place, ""), (replace_file, "file"), (replace_file, "folder")],
    ids=["in place", "no fsync of the file", "no fsync of the folder"],
)
def test_what_a_power_cut_would_damage_is_noticed(replace: Replace, without: str, tmp_path: Path) -> None:
    during, after = power_cuts(existing(tmp_path), replace, without)
    assert after != {NEW} or not all(left <= {OLD, NEW} for left in during)


def calls(folder: Path) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, existing(folder))
        replace_file(folder / "run.json", write)
        return disk.calls


def test_a_full_disk_at_every_call(tmp_path: Path) -> None:
    names = calls(tmp_path)
    assert len(names) == len(["open", "write", "write", "fsync", "close", "replace", "fsync of the folder"])
    for at, name in enumerate(names):
        path = existing(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, path, at)
            with pytest.raises(OSError, match=r"run.json (cannot be written|is written, but).*No space left") as caught:
                replace_file(path, write)
        assert caught.value.errno == errno.ENOSPC
        assert path.read_bytes() == (NEW if name == "fsync folder" else OLD), name
        assert list(tmp_path.iterdir()) == [path], "nothing else is left"


def test_a_process_that_dies_at_every_call(tmp_path: Path) -> None:
    for at in range(len(calls(tmp_path))):
        path = existing(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, path, at, dies=True)
            with pytest.raises(Died):
                replace_file(path, write)
        assert path.read_bytes() in (OLD, NEW)
        replace_file(path, lambda file: file.write(b"later"))  # which what was left does not hinder
        assert path.read_bytes() == b"later"
        left = [one for one in tmp_path.iterdir() if one != path]
        assert sorted(temporary_files(tmp_path)) == sorted(left)
        for one in left:
            one.unlink()


def test_a_file_that_exceeds_a_limit_of_the_system_stays_as_it_was(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path, before = existing(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"run.json cannot be written \(File too large\); it is as it was$"):
            replace_file(path, lambda file: file.write(bytes(100_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == OLD and list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_is_told_as_it_is(tmp_path: Path) -> None:
    def fails(file: BinaryIO) -> None:
        file.write(NEW)
        raise KeyboardInterrupt

    path = existing(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        replace_file(path, fails)
    assert path.read_bytes() == OLD and list(tmp_path.iterdir()) == [path]


def test_a_name_may_be_as_long_as_names_are(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".json")
    replace_file(path, write)
    assert path.read_bytes() == NEW
