"""One task by contenders of every kind, and sweeps that stop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.comparison import environments, measuring, problem, sweeping
from benchmarks.comparison.contenders import Contender, discover
from benchmarks.comparison.measuring import Pool, Settings, Trial, measure, relative_error
from benchmarks.comparison.tasks import Sweep, Task
from benchmarks.comparison.worker_process import Refused, Worker

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
TASK = Task("layer_kernel", n=4, width=16, depth=2, outputs=2)
SETTINGS = Settings(1, 1 << 30, call_limit=1.0, rounds=3, seconds_of_rounds=0.5)


def pool(contenders: list[Contender]) -> Pool:
    return Pool({one.name: Path(sys.executable) for one in contenders}, SETTINGS)


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Any], list[str]]:
    """The record of all fakes, and the progress lines."""
    contenders, lines = discover("fakes"), []
    with pool(contenders) as workers:
        record = measure(TASK, contenders, workers, 1e3, lines.append)
    return record, lines


def row(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in record["rows"] if one["contender"] == name)


def test_every_contender_gets_a_row_and_ours_is_first(measured: tuple[dict[str, Any], list[str]]) -> None:
    record, lines = measured
    assert [one["contender"] for one in record["rows"]] == [
        "ours", "absent", "broken", "crashing", "greedy", "late", "several", "wrong",
    ]  # fmt: skip
    assert len(lines) == 8
    assert record["reference"] == "float64"
    json.dumps(record)


@pytest.mark.parametrize(
    ("name", "outcome", "reason"),
    [
        ("absent", "no", "only for convolutions"),
        ("broken", "failed", "ArithmeticError: no kernel today"),
        ("crashing", "failed", "ended with signal 6"),
        ("greedy", "memory", "out of memory (1 GiB)"),
        ("late", "time", "over 1 s"),
        ("wrong", "wrong", "wrong by 1.0e-02"),
    ],
)
def test_whoever_fails_gets_the_reason(
    measured: tuple[dict[str, Any], list[str]], name: str, outcome: str, reason: str
) -> None:
    found = row(measured[0], name)
    assert found["outcome"] == outcome
    assert reason in found["reason"]
    assert ("median_s" in found) == (outcome == "wrong")


def test_a_right_value_has_rounds_memory_and_its_error(measured: tuple[dict[str, Any], list[str]]) -> None:
    found = row(measured[0], "ours")
    assert (found["outcome"], len(found["rounds_s"])) == ("ok", 3)
    assert found["min_s"] == min(found["rounds_s"]) <= found["median_s"]
    assert found["error"] < 1e-6
    assert found["peak_bytes"] >= 0


def test_the_fastest_right_variant_is_shown_though_another_took_its_process_down(
    measured: tuple[dict[str, Any], list[str]],
) -> None:
    found = row(measured[0], "several")
    assert (found["variant"], found["outcome"]) == ("fast", "ok")
    assert {one["variant"]: one["outcome"] for one in found["trials"]} == {
        "slow": "ok", "wrong": "wrong", "fast": "ok", "hanging": "time", "other": "no",
    }  # fmt: skip
    assert len(found["rounds_s"]) == 3


def test_idle_workers_take_no_processor_time(tmp_path: Path) -> None:
    contender = discover("fakes")[0]
    problem.make(TASK).save(tmp_path / "problem.npz")
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
    worker = Worker(Path(sys.executable), HERE, 1, None)
    worker.close()
    with pytest.raises(Refused, match="ended before"):
        worker.ask(1, do="forget", variant=None)


# ---- errors of values


def test_errors_are_relative_to_the_worst_kernel_or_number() -> None:
    expected = np.stack([np.eye(3), 100 * np.eye(3)])
    value = expected.copy()
    value[0, 0, 0] = 1.3
    assert relative_error(value, expected) == pytest.approx(0.3 / 3**0.5)
    assert relative_error(np.array([1.0, 2.2]), np.array([1.0, 2.0])) == pytest.approx(0.1)
    assert relative_error(np.ones(2), np.ones(3)) == np.inf
    assert relative_error(np.array([np.nan, 1.0]), np.ones(2)) == np.inf


# ---- sweeps


def test_a_sweep_goes_on_without_those_that_failed(tmp_path: Path) -> None:
    contenders = [one for one in discover("fakes") if one.name in ("ours", "late", "wrong")]
    sweep, lines = Sweep("n", (2, 3, 4, 5), TASK), []
    with pool(contenders) as workers:
        records = list(sweeping.run(sweep, contenders, workers, lambda _: 1e3, lines.append))
        again = list(sweeping.run(sweep, contenders, workers, lambda _: 1e3, lines.append, records[:3]))
    outcomes = [(row(record, "late")["outcome"], row(record, "late")["reason"]) for record in records]
    assert outcomes == [("ok", None), ("ok", None), ("time", "over 1 s"), ("time", "over 1 s at n = 4")]
    assert [row(record, "ours")["outcome"] for record in records] == ["ok"] * 4
    assert [record["task"]["n"] for record in again] == [5]
    assert row(again[0], "late")["reason"] == "over 1 s at n = 4"


def history(*trials: tuple[int, str, Trial]) -> list[dict[str, Any]]:
    """Records of one contender: value of the axis, name, trial."""
    return [{"task": {"n": n}, "rows": [{"contender": name, "trials": [vars(trial)]}]} for n, name, trial in trials]


def test_time_that_would_go_over_the_limit_is_not_spent() -> None:
    before = history((10, "a", Trial("", seconds=0.1)), (20, "a", Trial("", seconds=0.4)))
    settings = Settings(1, None, call_limit=5.0)
    task = Task("layer_kernel", n=80)
    assert sweeping.extrapolated([(10, 0.1), (20, 0.4)], 80) == pytest.approx(6.4)
    assert sweeping.extrapolated([(10, 0.2), (20, 0.2)], 40) == pytest.approx(0.4)  # linear at least
    found = sweeping.stopped(before, "n", task, [], settings)
    assert found["a", ""].reason == "over 5 s expected"
    assert not sweeping.stopped(before, "n", Task("layer_kernel", n=40), [], settings)


def test_a_variant_that_was_much_slower_is_left_out() -> None:
    before = history((10, "a", Trial("fast", seconds=0.1)), (10, "a", Trial("slow", seconds=0.5)))
    found = sweeping.stopped(before, "n", Task("layer_kernel", n=20), [], Settings(1, None))
    assert list(found) == [("a", "slow")]
    assert "3 times as slow as another variant at n = 10" in found["a", "slow"].reason


# ---- environments


def test_requirements_that_cannot_be_installed_are_a_reason(tmp_path: Path) -> None:
    assert environments.python_of((), tmp_path) == Path(sys.executable)
    with pytest.raises(environments.InstallationError, match="missing"):
        environments.python_of((str(tmp_path / "missing.whl"),), tmp_path)


def test_requirements_of_the_runners_torch_take_that_one(tmp_path: Path) -> None:
    import torch

    assert environments.filled(("torch=={torch}", "jax{cuda}==1"))[0] == f"torch=={torch.__version__.split('+')[0]}"
    python = environments.python_of(("torch=={torch}",), tmp_path)
    assert environments.python_of(("torch=={torch}",), tmp_path) == python
    assert environments.versions(python, ["torch", "nothing"]) == {"torch": torch.__version__}
