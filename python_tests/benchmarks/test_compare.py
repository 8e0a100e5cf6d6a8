"""A run of benchmarks/compare.py with the contenders of this environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common.script import RESULTS

ROOT = Path(__file__).resolve().parents[2]


def run(*given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.compare", "--quick", "--threads", "1", *given]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_quick_run_writes_its_file_and_resumes(tmp_path: Path) -> None:
    output = tmp_path / "comparison.json"
    before = sorted(RESULTS.iterdir())
    done = run("--only", "top_eigenvalue*/plain_torch", "--output", str(output))
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    (task,) = record["tasks"]
    rows = {one["contender"]: one for one in task["rows"]}
    assert set(rows) == {"ours", "plain_torch"}
    assert all(one["outcome"] == "ok" and one["error"] < 1e-3 for one in rows.values())
    assert task["work"]["flops"] > 0
    assert record["ceilings"]["flops_per_s"] > 0
    assert "times ours, medians of rounds: ours 1.00; plain torch" in done.stdout

    again = run("--only", "top_eigenvalue*/plain_torch", "--output", str(output), "--resume")
    assert again.returncode == 0, again.stderr
    assert "medians of rounds" not in again.stdout
    assert json.loads(output.read_text())["tasks"] == record["tasks"]
    assert sorted(RESULTS.iterdir()) == before
