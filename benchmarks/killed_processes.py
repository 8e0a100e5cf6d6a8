"""Claim tested: processes that share a study and are killed at any moment end with the numbers of one that is not.

Two processes share the runs of a study of the experiments. `flock` does nothing in them, as on some network file
systems. At random moments one of them gets SIGKILL, and another takes its place, until the study is done; then the next
begins, as often as it takes. Each run's metrics must have the bytes of those of a process that nobody disturbed. Every
process takes down which folders it has locked: no two may have the same at a time.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from benchmarks.common import script
from experiments.common.folder_lock import FolderLock, HeldError

PROCESSES = 2
STUDY = [
    *("--widths", "8", "16", "32", "--depth", "3", "--epochs", "3", "--train-size", "400", "--probe-size", "20"),
    *("--measurements", "8", "--checkpoint-every", "3", "--lr", "0.002"),
]


def disturbed(work: Callable[[Path], int], folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Do a study again and again in processes that are killed.

    Args:
        work: Does the study with an output folder, in a process of its own; returns its exit status.
        folder: An empty folder to work in.
        kills: How many processes to kill in all.
        seed: The seed of the moments.

    Returns:
        The kills, the studies that were done, and how often there was another status than 0, were two processes in a
        folder, were metrics others than without a disturbance, or could a folder not be had after all had ended.
    """
    random, witness = Random(seed), folder / "witness"
    witness.mkdir()
    start = time.monotonic()
    child = _fork(work, folder / "whole", witness)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - start
    found = {"kills": 0, "studies": 0, "other statuses": int(status != 0), "two at once": 0}
    found |= {"other metrics": 0, "folders blocked": 0}
    wanted = _metrics(folder / "whole")
    while found["kills"] < kills:
        found["studies"] += 1
        output = folder / f"study{found['studies']}"
        running = {_fork(work, output, witness) for _ in range(PROCESSES)}
        while running:
            _wait(running, random.uniform(0, seconds / 2) if found["kills"] < kills else 3600, found)
            if running and found["kills"] < kills:
                victim = random.choice(sorted(running))
                os.kill(victim, signal.SIGKILL)
                running.remove(victim)
                if os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) == -signal.SIGKILL:
                    found["kills"] += 1
                running.add(_fork(work, output, witness))
        found["other metrics"] += _metrics(output) != wanted
        found["folders blocked"] += sum(_blocked(path) for path in (output, *output.iterdir()) if path.is_dir())
    found["two at once"] = sum(1 for path in witness.glob("*.both"))
    return found


def _wait(running: set[int], seconds: float, found: dict[str, int]) -> None:
    """Wait so long, or until no process is left."""
    end = time.monotonic() + seconds
    while running and time.monotonic() < end:
        for child in list(running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                running.remove(child)
                found["other statuses"] += os.waitstatus_to_exitcode(status) != 0
        time.sleep(0.001)


def _fork(work: Callable[[Path], int], output: Path, witness: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for handle in (1, 2):
            os.dup2(nothing, handle)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        fcntl.flock = lambda handle, operation: None
        _take_down_locks(witness)
        status = work(output)
    finally:
        os._exit(status)


def _take_down_locks(witness: Path) -> None:
    """Let every lock leave this process's number while it is held, and a file where another's is there and alive."""
    take, release = FolderLock.__init__, FolderLock.release

    def taken(lock: FolderLock, folder: Path, wait: bool = False) -> None:
        take(lock, folder, wait)
        own = witness / str(folder).replace("/", "_")
        with suppress(OSError, ValueError):
            if _alive(int(own.read_text())):
                (witness / f"{own.name}-{os.getpid()}.both").touch()
        own.write_text(str(os.getpid()))

    def released(lock: FolderLock) -> None:
        (witness / str(lock.path.parent).replace("/", "_")).write_text("")
        release(lock)

    FolderLock.__init__, FolderLock.release = taken, released  # type: ignore[method-assign]


def _alive(pid: int) -> bool:
    """Whether a process is at work, and not one that was killed or this one."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return pid != os.getpid() and state not in "ZX"


def _blocked(folder: Path) -> bool:
    try:
        FolderLock(folder).release()
    except HeldError:
        return True
    return False


def _metrics(output: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(output.glob("*/metrics.csv"))}


def width(output: Path) -> int:
    """The study of width at a tiny size."""
    from experiments.width.__main__ import STUDY as study

    return study.main([*STUDY, "--threads", "1", "--output", str(output)])


def main() -> None:
    import experiments.width.__main__  # noqa: F401, so that forked processes need not

    parser = script.parser("killed_processes", __doc__, quick="with 3 kills", repeats=50, of_repeats="kills")
    args = script.parse(parser)
    with tempfile.TemporaryDirectory() as folder:
        found = disturbed(width, Path(folder), 3 if args.quick else args.repeats, seed=0)
    for name, count in found.items():
        print(f"{name:16}{count:6}")
    script.save(args, study=["width", *STUDY], processes=PROCESSES, found=found)


if __name__ == "__main__":
    main()
