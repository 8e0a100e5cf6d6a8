"""Locks on folders: between processes, after they were killed, in forked children, and of other machines."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from experiments.common import folder_lock
from experiments.common.folder_lock import FolderLock, HeldError, Holder, NoLinksError, locked


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this machine, which does nothing."""
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def held_by(folder: Path, **changes: Any) -> Holder:
    """Leaves a lock of another process: that of a process, or what is changed."""
    holder = replace(folder_lock._this_process(), **changes)
    (folder / folder_lock.NAME).write_text(json.dumps(asdict(holder)))
    return holder


def of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    return {"pid": process.pid, "started": folder_lock._started(process.pid)}


def taken(folder: Path) -> bool:
    """Whether the folder can be locked, which leaves nothing."""
    try:
        lock = FolderLock(folder)
    except HeldError:
        return False
    assert lock.held
    lock.release()
    assert list(folder.iterdir()) == []
    return True


def test_one_at_a_time(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(HeldError, match=rf"^process {os.getpid()} of "):
        FolderLock(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    lock.release()
    assert not lock.held and taken(tmp_path)


def test_a_process_of_this_machine_has_its_lock_until_it_ends(other: subprocess.Popen[bytes], tmp_path: Path) -> None:
    held_by(tmp_path, **of(other))
    assert not taken(tmp_path)
    other.send_signal(signal.SIGSTOP)  # suspended, for however long
    os.utime(tmp_path / ".lock", (0, 0))
    assert not taken(tmp_path)
    other.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not (free := taken(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert free and other.returncode is None, "also while its parent has not asked for it"


def test_a_process_that_has_got_the_number_of_another_has_not_its_lock(
    other: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    held_by(tmp_path, **{**of(other), "started": "1"})
    assert taken(tmp_path)


def test_a_lock_of_another_machine_ends_with_its_signs_of_life(tmp_path: Path) -> None:
    held_by(tmp_path, host="elsewhere", place="another boot", pid=1)
    with pytest.raises(
        HeldError, match=r"^process 1 of elsewhere; if that has ended, .*\.lock .* 10 minutes, or delete"
    ):
        FolderLock(tmp_path)
    ago = time.time() - folder_lock.SILENCE
    os.utime(tmp_path / ".lock", (ago + 60, ago + 60))
    assert not taken(tmp_path)
    os.utime(tmp_path / ".lock", (ago - 60, ago - 60))
    assert taken(tmp_path)


def test_a_lock_shows_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "BEAT", 0.01)
    lock = FolderLock(tmp_path)
    os.utime(tmp_path / ".lock", (0, 0))
    deadline = time.monotonic() + 10
    while (tmp_path / ".lock").stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / ".lock").stat().st_mtime > 0
    lock.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"pid": -1}'])
def test_a_lock_that_cannot_be_read_ends_by_its_age(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(content)
    with pytest.raises(HeldError, match=r"^one that its lock does not tell; if that has ended, "):
        FolderLock(tmp_path)
    os.utime(tmp_path / ".lock", (0, 0))
    assert taken(tmp_path)


def in_child(act: Callable[[], int]) -> int:
    """What a function returns in a forked child."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = act()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_has_no_lock_and_releases_none(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)

    def child() -> int:
        lock.release()
        return int(lock.held)

    assert in_child(child) == 0
    assert lock.held and not taken(tmp_path)
    lock.release()


def test_a_forked_child_does_not_keep_the_lock_of_a_parent_that_ended(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        FolderLock(tmp_path)
        if os.fork() == 0:
            os.write(writing, str(os.getpid()).encode())
            time.sleep(60)  # a worker that outlives its parent
        os._exit(0)
    child = int(os.read(reading, 20))
    os.waitpid(parent, 0)
    try:
        assert taken(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_one_at_a_time_gets_a_lock_that_was_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread leaves its lock as that of a process that has ended, and all race for it."""
    monkeypatch.setattr(folder_lock, "POLL", 0.001)
    pid, inside, turns, failures = _ended_pid(), threading.Semaphore(1), 30, []

    def work(number: int) -> None:
        for turn in range(turns):
            lock = FolderLock(tmp_path, wait=True)
            if not inside.acquire(blocking=False):
                failures.append((number, turn))
            time.sleep(0)
            inside.release()
            left = tmp_path / f"left{number}"
            left.write_text(json.dumps(asdict(replace(lock._me, pid=pid, token=f"{number}a{turn}"))))
            left.replace(tmp_path / ".lock")
            lock.release()  # which is not its own any more

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert taken(tmp_path)


def _ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_one_that_looked_long_ago_removes_no_newer_lock(tmp_path: Path) -> None:
    ended = held_by(tmp_path, pid=_ended_pid())
    (tmp_path / ".lock").unlink()
    lock = FolderLock(tmp_path)  # the next one is there by the time that the old lock is to be removed
    folder_lock._remove(tmp_path / ".lock", ended)
    assert lock.held
    lock.release()


def test_what_was_left_by_one_that_died_while_it_removed_a_lock(tmp_path: Path) -> None:
    ended = held_by(tmp_path, pid=_ended_pid())
    heir = replace(ended, token="b" * 16)
    (tmp_path / f".lock.{ended.token}").write_text(json.dumps(asdict(heir)))
    (tmp_path / f".lock.{heir.token}.claim").write_text(json.dumps(asdict(heir)))
    assert taken(tmp_path)


def test_a_lock_that_another_has_taken_over_is_not_held(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    held_by(tmp_path, pid=1, place="another boot")
    assert not lock.held
    lock.release()
    assert (tmp_path / ".lock").exists(), "it is another's"


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        def link(path: Path, target: Path) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Path, "hardlink_to", link)

    refuse(errno.EPERM)
    with pytest.raises(NoLinksError):
        FolderLock(tmp_path)
    with locked(tmp_path):
        pass
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        FolderLock(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_waiting(tmp_path: Path) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with locked(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(tmp_path):
        inside.set()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
