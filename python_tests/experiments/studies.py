"""What the tests of the studies share: starting and stopping a study, and reading what it leaves."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.common.training import Trainer

REPOSITORY = Path(__file__).resolve().parents[2]


def start(study: str, *arguments: str) -> subprocess.Popen[str]:
    """A study with one thread in a process of its own; its stderr has a line per measurement."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{study}", *arguments, "--threads", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


@contextmanager
def interrupted(
    patch: pytest.MonkeyPatch,
    when: Callable[[Trainer], bool],
    number: signal.Signals = signal.SIGTERM,
    kind: type[Trainer] = Trainer,
) -> Iterator[None]:
    """In the block, a signal comes once, before the first step of a trainer for which ``when`` is true."""
    step, sent = kind.step, []

    def with_signal(trainer: Trainer) -> float:
        if when(trainer) and not sent:  # a second one would end the program
            sent.append(number)
            signal.raise_signal(number)
        return step(trainer)

    with patch.context() as patched:
        patched.setattr(kind, "step", with_signal)
        yield


def texts(path: Path) -> list[dict[str, str]]:
    """The rows of a table, as written, without their digest."""
    with path.open() as file:
        return [{name: cell for name, cell in row.items() if name != "digest"} for row in csv.DictReader(file)]


def numbers(path: Path) -> list[dict[str, float]]:
    """The rows of a table of numbers."""
    return [{name: float(value) for name, value in row.items()} for row in texts(path)]


def metrics(output: Path) -> dict[str, bytes]:
    """The metrics file of every run in a study's folder, by the run's name."""
    return {path.parent.name: path.read_bytes() for path in sorted(output.glob("*/metrics.csv"))}
