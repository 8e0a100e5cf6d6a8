"""benchmarks/compare.py: bad input, and a run with the contenders of this environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ahkernels
from benchmarks.comparison.command_line import RESULTS, Selection, arguments
from benchmarks.comparison.contenders import discover

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "compare.py"


def run(*given: str) -> subprocess.CompletedProcess[str]:
    assert ahkernels.__file__ is not None
    path = os.pathsep.join([str(Path(ahkernels.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(SCRIPT), "--quick", "--threads", "1", *given]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=120)


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--only", "alignmnt*"], "argument --only: expected patterns of a task, or of a task and a contender"),
        (["--only", "alignment*/nobody"], "got 'alignment*/nobody'; tasks: layer_kernel-mlp"),
        (["--threads", "0"], "argument --threads: expected a whole number above 0, got '0'"),
        (["--threads", "two"], "argument --threads: expected a whole number above 0, got 'two'"),
        (["--memory-limit", "-1"], "argument --memory-limit: expected a number above 0, got '-1'"),
        (["--memory-limit", "inf"], "argument --memory-limit: expected a number above 0, got 'inf'"),
        (["--quick", "--resume"], "argument --resume: expected --output with --quick"),
        (["--output", "{folder}"], "argument --output: expected the path of a file, got the folder '{folder}'"),
        (["--output", "{broken}/a.json"], "expected the path of a folder, got '{broken}': {broken} is none"),
        (["--environments", "{broken}/a"], "argument --environments: expected the path of a folder, got '{broken}/a'"),
        (["--resume", "--output", "{broken}"], "argument --output: expected a JSON file that this script has written"),
        (["--resume", "--output", "{other}"], "has written, got {other} (KeyError: 'configuration')"),
    ],
)
def test_bad_values_name_option_expectation_and_value(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"folder": tmp_path, "broken": tmp_path / "broken.json", "other": tmp_path / "other.json"}
    paths["broken"].write_text("{")
    paths["other"].write_text("{}")
    with pytest.raises(SystemExit) as error:
        arguments([one.format(**paths) for one in given])
    assert error.value.code == 2
    assert message.format(**paths) in capsys.readouterr().err


def test_part_of_a_table_goes_to_no_results() -> None:
    assert arguments([]).output == RESULTS / f"comparison-{arguments([]).device}.json"
    assert arguments(["--only", "alignment*"]).output is not None
    assert arguments(["--only", "alignment*/torch_func"]).output is None
    assert arguments(["--quick"]).output is None


def test_ours_takes_part_wherever_another_does() -> None:
    contenders = discover()
    selection = Selection(["alignment*/torch_*", "sweep-n"], contenders)
    assert [one.name for one in selection.of("alignment-mlp")] == ["ours", "torch_func"]
    assert selection.of("sweep-n") == contenders
    assert selection.of("layer_kernel-mlp") == []


def test_every_contender_answers_for_every_task_without_its_library() -> None:
    given = arguments([])
    for contender in discover():
        assert contender.title
        assert contender.variants
        for task in (*given.tables, *(one for sweep in given.sweeps for one in sweep.tasks())):
            for variant in contender.variants:
                reason = contender.unable(task, variant)
                assert reason is None or reason == reason.strip()
