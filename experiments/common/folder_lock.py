"""A lock on a folder by a file in it, which needs no more of a file system than hard links.

``flock`` would do where it excludes, which it does not on every network file system. The file says who has the folder.
It is made by linking a whole file to its name: one process alone succeeds, and no other sees it half written. A lock
whose process has ended is removed by whoever comes next: on the same machine as soon as there is no such process, and
one of another machine after ten minutes without a sign of life, of which its holder gives one each minute. A process
that is suspended keeps its lock on its own machine. A forked child has none, for it is another process.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = ".lock"
BEAT = 60.0  # seconds between signs of life
SILENCE = 600.0  # seconds without one, after which a process of another machine counts as ended
POLL = 0.2  # seconds between looks at a lock that is waited for


class HeldError(RuntimeError):
    """Another process has the folder; the message says which one, and how the lock ends if that process has not."""


class NoLinksError(RuntimeError):
    """The file system has no hard links."""


@dataclass(frozen=True)
class Holder:
    """The process that has a lock.

    Attributes:
        host: The name of its machine, for people.
        place: Where its number means something: a machine since it was started, and a namespace of processes.
        pid: Its number.
        started: When it was started, as the kernel counts; empty where that is not known.
        token: The name of this very lock.
    """

    host: str
    place: str
    pid: int
    started: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host}" if self.pid else "one that its lock does not tell"


UNKNOWN = Holder("", "", 0, "", "unknown")  # who has a lock that cannot be read


class FolderLock:
    """The lock of a folder, from construction until it is released or this process ends.

    Args:
        folder: An existing folder.
        wait: Whether to wait while another process has it.

    Raises:
        HeldError: If another process has it.
        NoLinksError: If the file system cannot tell processes apart this way.
        OSError: If the folder cannot be written to.
    """

    def __init__(self, folder: Path, wait: bool = False) -> None:
        self.path = folder / NAME
        self._me = _this_process()
        while (holder := _take(self.path, self._me)) != self._me:
            if not wait:
                raise HeldError(_told(holder, self.path))
            time.sleep(POLL)
        with suppress(OSError):  # it is in nobody's way
            for path in folder.glob(f"{NAME}.*"):  # what processes have left that were killed over the lock
                if (left := _read(path)) is not None and _has_ended(left, path, self.path):
                    path.unlink(missing_ok=True)
        self._released = threading.Event()
        threading.Thread(target=self._show_life, daemon=True).start()

    @property
    def held(self) -> bool:
        """Whether the lock is still that of this process, and nobody has taken it for one of a process that ended."""
        return os.getpid() == self._me.pid and _read(self.path) == self._me

    def release(self) -> None:
        """Let other processes have the folder; in a forked child this does nothing."""
        if os.getpid() != self._me.pid:
            return  # the event below may have been in use when this child was forked
        self._released.set()
        with suppress(OSError):  # a lock that stays ends with the process
            if self.held:
                self.path.unlink()

    def _show_life(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):
                os.utime(self.path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this block with the same folder; where there are no locks, do not."""
    lock = None
    with suppress(NoLinksError):
        lock = FolderLock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _take(path: Path, me: Holder) -> Holder:
    """Make the file of a lock, and tell whose it then is; one whose process has ended is removed first."""
    claim = path.with_name(f"{path.name}.{me.token}.claim")
    try:
        claim.write_text(json.dumps(asdict(me)))
        while True:
            with suppress(FileExistsError):
                _link(claim, path)
            holder = _read(path)
            if holder is not None and not _has_ended(holder, path, claim):
                return holder  # perhaps this process, also where a network file system has lost the answer
            if holder is not None:
                _remove(path, holder)
    finally:
        with suppress(OSError):
            claim.unlink(missing_ok=True)


def _link(claim: Path, path: Path) -> None:
    try:
        path.hardlink_to(claim)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise NoLinksError(error.strerror) from error
        raise


def _remove(path: Path, ended: Holder) -> None:
    """Remove the lock of a process that has ended.

    One process at a time may, under a lock that is named after the one to be removed, and only after another look: the
    next process may have the lock by then.
    """
    heir = path.with_name(f"{path.name}.{ended.token}")
    me = _this_process()
    if _take(heir, me) != me:
        time.sleep(POLL / 10)
        return
    try:
        if _read(path) == ended:
            path.unlink(missing_ok=True)
    finally:
        with suppress(OSError):
            heir.unlink(missing_ok=True)


def _read(path: Path) -> Holder | None:
    """Who has a lock; None where nobody does."""
    try:
        state = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return UNKNOWN
    kinds = {name: type(value) for name, value in asdict(UNKNOWN).items()}
    if not isinstance(state, dict) or {name: type(value) for name, value in state.items()} != kinds:
        return UNKNOWN
    return Holder(**state) if 0 < state["pid"] < 2**31 and state["token"].isalnum() else UNKNOWN


def _has_ended(holder: Holder, path: Path, written_now: Path) -> bool:
    """Whether the process of a lock has ended.

    Args:
        holder: The process.
        path: The file of its lock.
        written_now: A file that this process has just written beside it, by whose time that of the lock is judged: both
            are of the same clock.
    """
    if holder.place != _place():
        with suppress(FileNotFoundError):
            return written_now.stat().st_mtime - path.stat().st_mtime > SILENCE
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is another user's
        pass
    return _started(holder.pid) not in (holder.started, "")


def _told(holder: Holder, path: Path) -> str:
    if holder.place == _place():
        return str(holder)
    return f"{holder}; if that has ended, {path} counts no more after {SILENCE / 60:.0f} minutes, or delete it now"


def _this_process() -> Holder:
    return Holder(platform.node(), _place(), os.getpid(), _started(os.getpid()), secrets.token_hex(8))


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str:
    """When a process was started; empty where that is not known, and "ended" for one that only waits for its parent."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "ended" if state in "ZX" else fields[18]
