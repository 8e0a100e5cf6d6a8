"""The best rates of the machine, on processors for which torch has fewer products than on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MEASURE = "from benchmarks.common import ceilings; found = ceilings.measure((), (64,) * 3, 1, 2**16); "
PRINT = "import json; print(json.dumps(found.to_dict()))"


def test_every_type_has_a_rate_where_onednn_has_no_bf16() -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", MEASURE + PRINT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    rates = json.loads(done.stdout)["best_flops_per_s"]
    assert set(rates) == {"fp32", "bf16", "fp64"} and min(rates.values()) > 0
