"""The process of a contender while it waits, and after it was ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.comparison import measuring, problem
from benchmarks.comparison.contenders import discover
from benchmarks.comparison.worker_process import Refused, WorkerProcess
from python_tests.benchmarks.comparison import fakes
from python_tests.benchmarks.comparison.runs import TASK, pool


def test_idle_workers_take_no_processor_time(tmp_path: Path) -> None:
    contender = discover(fakes.__name__)[0]
    problem.make(TASK).save(tmp_path / measuring.PROBLEM)
    with pool([contender]) as workers:
        worker = measuring.prepare(contender, "", TASK, workers, tmp_path)
        worker.ask(5, do="run", variant="", calls=1)

        def ticks() -> int:
            fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        before = ticks()
        with pytest.raises(subprocess.TimeoutExpired):
            worker.process.wait(0.3)
        assert ticks() - before <= 2


def test_a_worker_that_was_ended_says_so() -> None:
    worker = WorkerProcess(Path(sys.executable), 1, None)
    worker.close()
    with pytest.raises(Refused, match="ended before"):
        worker.ask(1, do="forget", variant=None)
