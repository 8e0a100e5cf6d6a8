"""The command line of the comparison: bad values, patterns, and where results go."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.common.script import RESULTS
from benchmarks.comparison.command_line import Selection, arguments
from benchmarks.comparison.contenders import discover


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
