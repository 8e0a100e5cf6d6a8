"""A quick run of benchmarks/mixed_precision.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_quick_run_writes_distances(tmp_path: Path) -> None:
    output = tmp_path / "mixed_precision.json"
    command = [sys.executable, "-m", "benchmarks.mixed_precision", "--quick", "--threads", "1", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 21
    assert all(ours <= 3 * plain + 1e-3 and found <= 0.1 for *_, ours, plain, found in rows)
