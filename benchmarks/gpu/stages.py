"""Commands one after the other under one deadline: each has its share of the time that is left, and ends whole.

A stage is a process group of its own. When its share is over, or when its command has ended, whatever still runs in the
group is killed, and the next stage begins: one that hangs or crashes costs its share and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

KEPT = 4000  # characters from the end of a stage's output, in its record


@dataclass(frozen=True)
class Stage:
    """A command and its weight: of the time that is left, a stage has its part of the weights that are left."""

    name: str
    command: Sequence[str]
    weight: float
    environment: Mapping[str, str] = field(default_factory=dict)


def run(stages: Sequence[Stage], seconds: float, folder: Path, log: Path) -> Iterator[dict[str, object]]:
    """Yields a record of each stage as it ends; all output goes to `log` as it comes."""
    deadline = time.monotonic() + seconds
    for index, stage in enumerate(stages):
        left = max(0.0, deadline - time.monotonic())
        share = left * stage.weight / sum(later.weight for later in stages[index:])
        yield _run(stage, share, folder, log)


def _run(stage: Stage, share: float, folder: Path, log: Path) -> dict[str, object]:
    command = [part.replace(sys.executable, "python") for part in stage.command]
    record: dict[str, object] = {"stage": stage.name, "command": command, "share_s": round(share, 1)}
    if shutil.which(stage.command[0]) is None:
        return record | {"outcome": f"left out: {stage.command[0]} is not on the PATH"}
    start = time.monotonic()
    with log.open("ab") as output:
        output.write(f"\n=== {stage.name}: {' '.join(command)}\n".encode())
        output.flush()
        begin = output.tell()
        process = subprocess.Popen(
            stage.command,
            cwd=folder,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(stage.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            outcome = _outcome(process.wait(share))
        except subprocess.TimeoutExpired:
            outcome = f"stopped after its share of {share:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # it waits for a driver
                outcome = f"stopped after its share of {share:.0f} s, but would not end"
    with log.open("rb") as written:
        written.seek(begin)
        text = written.read().decode(errors="replace")[-KEPT:].replace(str(folder), ".")
    return record | {"outcome": outcome, "seconds": round(time.monotonic() - start, 2), "output": text}


def _outcome(status: int) -> str:
    if status == 0:
        return "passed"
    return (
        f"failed with status {status}" if status > 0 else f"ended by signal {-status} ({signal.Signals(-status).name})"
    )


def failures(records: Sequence[Mapping[str, object]]) -> int:
    """Stages that neither passed nor were left out."""
    return sum(not str(record["outcome"]).startswith(("passed", "left out")) for record in records)


def tell(record: Mapping[str, object], say: Callable[[str], object] = print) -> None:
    """The end of a stage's output, and how it ended."""
    if record.get("output"):
        say(str(record["output"]))
    say(f"=== {record['stage']}: {record['outcome']}, {record.get('seconds', 0)} s of {record['share_s']} s")
