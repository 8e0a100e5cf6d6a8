"""Processes that share a study and are killed at random moments (benchmarks/killed_processes.py, with a toy study)."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import torch

from benchmarks import killed_processes
from benchmarks.common.script import RESULTS
from experiments.common import folder_lock
from experiments.common.jobs import Job, share
from experiments.common.store import Row, RunStore

RUNS, STEPS = 3, 4


def train(store: RunStore) -> int:
    """Numbers that depend on all before them, with a checkpoint after each."""
    state = store.state or {"iteration": 0, "w": torch.ones(3)}
    while state["iteration"] < STEPS:
        time.sleep(0.002)
        state = {"iteration": state["iteration"] + 1, "w": state["w"] * 1.1 + len(store.name)}
        store.rows.append({"iteration": state["iteration"], "w": float(state["w"].sum())})
        store.save(state, finished=state["iteration"] == STEPS)
    return 0


def finished(rows: list[Row]) -> bool:
    return len(rows) == STEPS


def study(output: Path) -> int:
    os.fsync = lambda handle: None  # in a process of its own
    jobs = [Job(f"run{i}", train, finished=finished, config={"number": i}) for i in range(RUNS)]
    return share(output, jobs, {}, "study")


def test_killed_processes_end_with_the_same_metrics(tmp_path: Path) -> None:
    found = killed_processes.disturbed(study, tmp_path, kills=6, seed=0)
    assert found.pop("studies") > 0
    assert found == {"kills": 6, **dict.fromkeys(found.keys() - {"kills"}, 0)}


def test_two_in_a_folder_are_noticed(tmp_path: Path) -> None:
    def keep(folder: Path) -> int:
        folder_lock.FolderLock(folder)
        (tmp_path / "kept").touch()
        time.sleep(60)
        return 0

    def take_all_the_same(folder: Path) -> int:
        folder_lock._has_ended = lambda holder, *files: holder.pid != os.getpid()  # in a process of its own
        folder_lock.FolderLock(folder)
        return 0

    folder, witness = tmp_path / "run", tmp_path / "witness"
    folder.mkdir()
    witness.mkdir()
    first = killed_processes._fork(keep, folder, witness)
    while not (tmp_path / "kept").exists():
        time.sleep(0.001)
    second = killed_processes._fork(take_all_the_same, folder, witness)
    assert os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]) == 0
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert len(list(witness.glob("*.both"))) == 1


def test_the_committed_figures() -> None:
    found = json.loads((RESULTS / "killed_processes.json").read_text())["found"]
    assert found["kills"] >= 50
    assert all(count == 0 for name, count in found.items() if name not in ("kills", "studies"))
