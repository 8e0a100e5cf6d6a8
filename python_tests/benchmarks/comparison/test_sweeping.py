"""Sweeps that go on without the contenders that failed, or that would take too long."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.comparison import sweeping
from benchmarks.comparison.contenders import discover
from benchmarks.comparison.measuring import Settings, Trial
from benchmarks.comparison.tasks import Sweep, Task
from python_tests.benchmarks.comparison import fakes
from python_tests.benchmarks.comparison.runs import TASK, pool, row


def test_a_sweep_goes_on_without_those_that_failed() -> None:
    contenders = [one for one in discover(fakes.__name__) if one.name in ("ours", "late", "wrong")]
    sweep, lines = Sweep("n", (3, 4, 5, 6), TASK), []
    with pool(contenders) as workers:
        records = list(sweeping.run(sweep, contenders, workers, lambda _: 1e3, lines.append))
        again = list(sweeping.run(sweep, contenders, workers, lambda _: 1e3, lines.append, records[:3]))
    outcomes = [(row(record, "late")["outcome"], row(record, "late")["reason"]) for record in records]
    assert outcomes == [("ok", None), ("ok", None), ("time", "over 1 s"), ("time", "over 1 s at n = 5")]
    assert [row(record, "ours")["outcome"] for record in records] == ["ok"] * 4
    assert [record["task"]["n"] for record in again] == [6]
    assert row(again[0], "late")["reason"] == "over 1 s at n = 5"


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
