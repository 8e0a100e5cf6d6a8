"""The run for minutes on a GPU, rehearsed on a CPU: order, deadline, and stages that hang, crash or leave something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import prebuilt, stages
from benchmarks.gpu.row_file import RowFile
from benchmarks.gpu.stages import Stage

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "run_on_gpu.py"
PYTHON = sys.executable
SLEEP = "import time; time.sleep(600)"
SLEEP_WITH_CHILD = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', '{SLEEP}']); time.sleep(600)"


def run(tmp_path: Path, *found: Stage, seconds: float = 60) -> list[dict[str, Any]]:
    return list(stages.run(found, seconds, tmp_path, tmp_path / "log"))


def processes_with(mark: str) -> list[int]:
    """Living processes that have the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def nothing_runs(mark: str) -> bool:
    until = time.monotonic() + 5
    while processes_with(mark) and time.monotonic() < until:
        time.sleep(0.05)
    return not processes_with(mark)


def test_a_stage_that_hangs_is_ended_with_its_child_and_the_next_begins(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    hang = Stage("hang", [PYTHON, "-c", SLEEP_WITH_CHILD], 1, {"MARK": mark})
    records = run(tmp_path, hang, Stage("next", [PYTHON, "-c", "print('here')"], 19), seconds=40)
    assert [record["outcome"] for record in records] == ["stopped after its share of 2 s", "passed"]
    assert records[1]["output"] == "here\n"
    assert nothing_runs(mark)


def test_what_a_finished_stage_has_left_running_is_ended(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    leaves = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}'])"
    (record,) = run(tmp_path, Stage("leaves", [PYTHON, "-c", leaves], 1, {"MARK": mark}))
    assert record["outcome"] == "passed"
    assert nothing_runs(mark)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("raise SystemExit(3)", "failed with status 3"),
        ("import os; os.abort()", "ended by signal 6 (SIGABRT)"),
        ("pass", "passed"),
    ],
)
def test_how_a_stage_ended(tmp_path: Path, code: str, outcome: str) -> None:
    records = run(tmp_path, Stage("one", [PYTHON, "-c", code], 1))
    assert records[0]["outcome"] == outcome
    assert stages.failures(records) == (outcome != "passed")


def test_a_program_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    records = run(tmp_path, Stage("one", ["no-such-program"], 1))
    assert records[0]["outcome"] == "left out: no-such-program is not on the PATH"
    assert stages.failures(records) == 0


def test_time_that_a_stage_leaves_goes_to_those_after_it(tmp_path: Path) -> None:
    quick = [PYTHON, "-c", "pass"]
    first, second = run(tmp_path, Stage("first", quick, 3), Stage("second", quick, 1), seconds=40)
    assert first["share_s"] == 30
    assert 30 < second["share_s"] <= 40


def test_rows_are_whole_after_each(tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "new" / "rows.json", benchmark="any")
    for count in range(3):
        assert json.loads(rows.path.read_text()) == {"benchmark": "any", "rows": [{"i": i} for i in range(count)]}
        rows.add("one more", i=count)
    assert [path.name for path in rows.path.parent.iterdir()] == ["rows.json"]


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        ([8, 0], None),
        ([8, 9], None),
        ([9, 0], None),
        ([10, 0], None),
        ([7, 5], "architectures [80, 90], and the device has 75"),
        (None, "no CUDA device"),
    ],
)
def test_whether_a_library_built_elsewhere_fits_the_device(capability: list[int] | None, reason: str | None) -> None:
    found = prebuilt.misfit({"cuda": "13.0", "architectures": "80,90"}, "13.2", capability)
    assert found == reason if reason is None else reason in str(found)


def test_a_library_of_another_cuda_or_for_other_devices_alone_does_not_fit(tmp_path: Path) -> None:
    assert "CUDA 12.9" in str(prebuilt.misfit({"cuda": "12.9", "architectures": "80,90"}, "13.0", [9, 0]))
    assert "[80]" in str(prebuilt.misfit({"cuda": "13.0", "architectures": "80"}, "13.0", [9, 0]))
    (tmp_path / "_cuda.so").write_text("no library")
    assert "_cuda.so" in str(prebuilt.reason_against(tmp_path / "_cuda.so"))


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
    command = [
        PYTHON,
        str(SCRIPT),
        "--device",
        "cpu",
        "--quick",
        "--plant",
        "--seconds",
        "1500",
        "--output",
        str(output),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    record = json.loads((output / "gpu.json").read_text())
    outcomes = {one["stage"]: one["outcome"] for one in record["stages"]}
    assert list(outcomes) == ["tile", "hang", "crash", "tests", "layer", "counters", "networks", "memcheck"], (
        done.stdout
    )
    assert outcomes.pop("hang").startswith("stopped after its share"), done.stdout
    assert outcomes.pop("crash") == "ended by signal 6 (SIGABRT)"
    assert set(outcomes.values()) == {"passed"}, (output / "gpu.log").read_text()
    assert done.returncode == 2
    assert nothing_runs(mark)
    rows = {path.stem: json.loads(path.read_text()).get("rows") for path in output.glob("cuda_*.json")}
    assert [(row["uses"], row["precision"], row["right"]) for row in rows["cuda_tile"]] == [
        (uses, precision, True) for uses in (1, 2) for precision in ("highest", "high", "medium")
    ]
    assert [row["name"] for row in rows["cuda_layer"][:5]] == ["copy", "bf16", "tf32", "fp32", "fp64"]
    contenders = {row["contender"].split(", blocks")[0] for row in rows["cuda_layer"] if row["kind"] == "layer"}
    assert contenders == {"ours, moments", "ours, whole alignment", "plain torch, eager", "plain torch, compiled"}
    assert [row["counters"] for row in rows["cuda_counters"]] == [
        {"Duration": "7.5 us"},
        *[{"gpu__time_duration.sum": "7.5 us"}] * 3,
    ]
    assert [row["kind"] for row in rows["cuda_networks"]] == ["network"] * 4 + ["wide"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds", "0"], "argument --seconds: expected a number above 0, got '0'"),
        (["--cuda-library", "nowhere.so"], "argument --cuda-library: expected the path of a library, got 'nowhere.so'"),
        (["--only", "tiles"], "argument --only: expected some of tile, tests, layer, counters, networks, memcheck"),
        (["--output", str(SCRIPT)], "argument --output: expected the path of a folder"),
        (["--device", "gpu"], "argument --device: invalid choice: 'gpu'"),
    ],
)
def test_bad_options_are_refused_with_a_sentence(options: list[str], message: str) -> None:
    done = subprocess.run([PYTHON, str(SCRIPT), *options], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
