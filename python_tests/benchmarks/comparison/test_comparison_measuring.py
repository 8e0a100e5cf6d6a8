"""One task by contenders of every kind."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.comparison.contenders import discover
from benchmarks.comparison.measuring import measure, relative_error
from python_tests.benchmarks.comparison import fakes
from python_tests.benchmarks.comparison.runs import TASK, pool, row


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Any], list[str]]:
    """The record of all fakes, and the progress lines."""
    contenders, lines = discover(fakes.__name__), []
    with pool(contenders) as workers:
        record = measure(TASK, contenders, workers, 1e3, lines.append)
    return record, lines


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


def test_errors_are_relative_to_the_worst_kernel_or_number() -> None:
    expected = np.stack([np.eye(3), 100 * np.eye(3)])
    value = expected.copy()
    value[0, 0, 0] = 1.3
    assert relative_error(value, expected) == pytest.approx(0.3 / 3**0.5)
    assert relative_error(np.array([1.0, 2.2]), np.array([1.0, 2.0])) == pytest.approx(0.1)
    assert relative_error(np.ones(2), np.ones(3)) == np.inf
    assert relative_error(np.array([np.nan, 1.0]), np.ones(2)) == np.inf
