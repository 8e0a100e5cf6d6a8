"""Stages under one deadline: order, shares, and those that hang, crash or leave something running."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import stages
from benchmarks.gpu.stages import Stage
from python_tests.benchmarks.processes import nothing_runs

PYTHON = sys.executable
SLEEP = "import time; time.sleep(600)"
SLEEP_WITH_CHILD = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', '{SLEEP}']); time.sleep(600)"


def run(tmp_path: Path, *found: Stage, seconds: float = 60) -> list[dict[str, Any]]:
    return list(stages.run(found, seconds, tmp_path, tmp_path / "log"))


def test_a_stage_that_hangs_is_ended_with_its_child_and_the_next_begins(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    hang = Stage("hang", [PYTHON, "-c", SLEEP_WITH_CHILD], 1, {"MARK": mark})
    records = run(tmp_path, hang, Stage("next", [PYTHON, "-c", "print('here')"], 19), seconds=40)
    assert [record["outcome"] for record in records] == ["stopped after its share of 2 s", "passed"]
    assert records[1]["output"] == "here\n"
    assert nothing_runs(mark)


def test_what_a_finished_stage_has_left_running_is_ended(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    leaves = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}'])"
    (record,) = run(tmp_path, Stage("leaves", [PYTHON, "-c", leaves], 1, {"MARK": mark}))
    assert record["outcome"] == "passed"
    assert nothing_runs(mark)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("raise SystemExit(3)", "failed with status 3"),
        ("import os; os.abort()", "ended by signal 6 (SIGABRT)"),
        ("pass", "passed"),
    ],
)
def test_how_a_stage_ended(tmp_path: Path, code: str, outcome: str) -> None:
    records = run(tmp_path, Stage("one", [PYTHON, "-c", code], 1))
    assert records[0]["outcome"] == outcome
    assert stages.failures(records) == (outcome != "passed")


def test_a_program_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    records = run(tmp_path, Stage("one", ["no-such-program"], 1))
    assert records[0]["outcome"] == "left out: no-such-program is not on the PATH"
    assert stages.failures(records) == 0


def test_time_that_a_stage_leaves_goes_to_those_after_it(tmp_path: Path) -> None:
    quick = [PYTHON, "-c", "pass"]
    first, second = run(tmp_path, Stage("first", quick, 3), Stage("second", quick, 1), seconds=40)
    assert first["share_s"] == 30
    assert 30 < second["share_s"] <= 40
