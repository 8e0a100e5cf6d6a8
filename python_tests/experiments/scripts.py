"""What the tests of the experiments share: processes, and what a command line answers."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

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


def refused(parse: Callable[[Sequence[str]], object], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a script says of a command line that it exits over, with status 2."""
    with pytest.raises(SystemExit) as error:
        parse(arguments)
    assert error.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def helped(parse: Callable[[Sequence[str]], object], capsys: pytest.CaptureFixture[str]) -> str:
    """A script's --help, on one line."""
    with pytest.raises(SystemExit):
        parse(["--help"])
    return " ".join(capsys.readouterr().out.split())


def texts(path: Path) -> list[dict[str, str]]:
    """The rows of a table, as written."""
    with path.open() as file:
        return list(csv.DictReader(file))


def numbers(path: Path) -> list[dict[str, float]]:
    """The rows of a table of numbers."""
    return [{name: float(value) for name, value in row.items()} for row in texts(path)]


def metrics(output: Path) -> dict[str, bytes]:
    """The metrics file of every run in a study's folder, by the run's name."""
    return {path.parent.name: path.read_bytes() for path in sorted(output.glob("*/metrics.csv"))}
