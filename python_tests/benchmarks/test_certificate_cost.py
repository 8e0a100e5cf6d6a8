"""A quick run of benchmarks/certificate.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_quick_run_writes_costs_and_faults(tmp_path: Path) -> None:
    output = tmp_path / "certificate.json"
    options = ["--quick", "--threads", "1", "--repeats", "1", "--output", str(output)]
    command = [sys.executable, "-m", "benchmarks.certificate", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    assert [row[1] for row in record["rows"]] == [8] and all(row[4] > 0 for row in record["rows"])
    of_all, of_one = record["faults"]["rows"]
    assert of_all[2] == "all samples" and of_one[2] == "one sample"
    assert of_all[3] <= 1e-7 and of_all[4] <= 1e-2 and of_all[3] <= of_one[3] <= 1e-5
