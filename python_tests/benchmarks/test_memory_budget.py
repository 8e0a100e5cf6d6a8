"""A quick run of benchmarks/memory_budget.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common.script import RESULTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark of Linux")
def test_a_quick_run_writes_a_row_for_each_case_and_budget(tmp_path: Path) -> None:
    output, before = tmp_path / "memory.json", sorted(RESULTS.iterdir())
    options = ["--threads", "1", "--budgets", "64", "256", "--cases", "transformer without rules", "--output", output]
    command = [sys.executable, "-m", "benchmarks.memory_budget", "--quick", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    assert record["benchmark"] == "memory_budget" and record["quick"]
    rows = record["rows"]
    assert [(row["case"], row["budget_bytes"] >> 20) for row in rows] == [
        ("transformer without rules", 64),
        ("transformer without rules", 256),
    ]
    for row in rows:
        assert row["within"] == (row["peak_bytes"] <= row["budget_bytes"] + record["allowance_bytes"])
        assert 0 < row["peak_bytes"] < 64 << 20 and row["parameter_bytes"] > 0 and row["input_bytes"] > 0
        assert row["largest_layer_route"] == "fallback" and row["largest_layer_bytes"] > 0
    assert rows[1]["ratio"] == 1
    assert "<= budget + 100" in done.stdout and "blocks.0.up.linear: fallback" in done.stdout
    assert sorted(RESULTS.iterdir()) == before


def test_every_case_has_a_tiny_network() -> None:
    memory_budget = pytest.importorskip("benchmarks.memory_budget")
    for name in memory_budget.CASES:
        model, x, y = memory_budget.problem(name, 3, quick=True)
        assert model(x).shape == (3, memory_budget.OUTPUTS) and len(x) == len(y) == 3
        assert sum(parameter.numel() for parameter in model.parameters()) < 200_000, name
