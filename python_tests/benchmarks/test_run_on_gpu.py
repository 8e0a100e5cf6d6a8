"""The run for minutes on a GPU, rehearsed on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from python_tests.benchmarks.processes import nothing_runs

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable
COMMAND = [PYTHON, "-m", "benchmarks.run_on_gpu"]
NCU = """#!/bin/sh
if [ "$1" = --query-metrics ]; then echo 'gpu__time_duration  ns  a duration'; exit; fi
while [ $# -gt 0 ]; do case "$1" in gpu__*) asked="$1";; "$BIN"/*) break;; esac; shift; done
"$@" || exit
echo '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
echo "\"0\",\"tiles\",\"${asked:-Duration}\",\"us\",\"7.5\""
"""
SANITIZER = """#!/bin/sh
while [ $# -gt 0 ]; do case "$1" in "$BIN"/*) break;; esac; shift; done
"$@" && echo '0 errors'
"""


def test_rehearsal_on_a_cpu(tmp_path: Path) -> None:
    """All stages, with stand-ins for the profiler and the sanitizer, a stage that hangs and one that crashes."""
    tools, output, mark = tmp_path / "bin", tmp_path / "out", uuid.uuid4().hex
    tools.mkdir()
    for name, text in (("ncu", NCU), ("compute-sanitizer", SANITIZER)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "BIN": str(Path(PYTHON).parent), "MARK": mark}
    # The problems are tiny: more threads and compilers would only wait for each other, long on a busy machine.
    environment |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    options = ["--device", "cpu", "--quick", "--plant", "--seconds", "1500", "--output", str(output)]
    done = subprocess.run([*COMMAND, *options], env=environment, cwd=ROOT, capture_output=True, text=True)
    record = json.loads((output / "gpu.json").read_text())
    outcomes = {one["stage"]: one["outcome"] for one in record["stages"]}
    assert list(outcomes) == [
        "tile",
        "hang",
        "crash",
        "tests",
        "layer",
        "stages",
        "counters",
        "networks",
        "memcheck",
    ], done.stdout
    assert outcomes.pop("hang").startswith("stopped after its share"), done.stdout
    assert outcomes.pop("crash") == "ended by signal 6 (SIGABRT)"
    assert set(outcomes.values()) == {"passed"}, (output / "gpu.log").read_text()
    assert done.returncode == 2
    assert nothing_runs(mark)
    rows = {path.stem: json.loads(path.read_text()).get("rows") for path in output.glob("cuda_*.json")}
    assert [(row["positions"], row["precision"], row["right"]) for row in rows["cuda_tile"]] == [
        (uses, precision, True) for uses in (1, 2) for precision in ("highest", "high", "medium")
    ]
    assert [row["name"] for row in rows["cuda_layer"][:5]] == ["copy", "bf16", "tf32", "fp32", "fp64"]
    contenders = {row["contender"].split(", blocks")[0] for row in rows["cuda_layer"] if row["kind"] == "layer"}
    assert contenders == {"ours, moments", "ours, whole alignment", "plain torch, eager", "plain torch, compiled"}
    assert [row["counters"] for row in rows["cuda_counters"]] == [
        {"Duration": "7.5 us"},
        *[{"gpu__time_duration.sum": "7.5 us"}] * 3,
    ]
    assert [row["stage"] for row in rows["cuda_stages"]] == ["host"] * 3  # nothing else is on a device
    assert [row["kind"] for row in rows["cuda_networks"]] == ["network"] * 4 + ["wide"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds", "0"], "argument --seconds: expected a number above 0, got '0'"),
        (["--cuda-library", "nowhere.so"], "argument --cuda-library: expected the path of a library, got 'nowhere.so'"),
        (["--only", "tiles"], "argument --only: expected some of tile, tests, layer, stages, counters, networks,"),
        (["--output", __file__], "argument --output: expected the path of a folder"),
        (["--device", "gpu"], "argument --device: invalid choice: 'gpu'"),
    ],
)
def test_bad_options_are_refused_with_a_sentence(options: list[str], message: str) -> None:
    done = subprocess.run([*COMMAND, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
