"""What all studies have in common: configurations, jobs in turn and shared, stopping, divergence, drawing."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.common import command_line, data
from experiments.common.folder_lock import FolderLock, HeldError
from experiments.common.jobs import Job, Run, read, share
from experiments.common.store import RunStore
from experiments.common.study import Study
from experiments.common.training import DivergedError, Recipe

Train = Callable[[RunStore], int]


def finishing(store: RunStore) -> int:
    """A run with a single row."""
    store.rows.append({"iteration": 1, "train_loss": 0.5})
    store.save({}, finished=True)
    return 0


def interrupted(store: RunStore) -> int:
    """A run that a signal stops."""
    store.save({})
    return signal.SIGTERM


def diverging(store: RunStore) -> int:
    raise DivergedError("training diverged")


def study(*trains: Train, drawn: list[dict[str, Run]] | None = None, **options: Any) -> Study:
    """A study with a job for each way to train."""

    def add(p: argparse.ArgumentParser) -> None:
        command_line.add(p, "--dataset", "--data-dir", "--width")

    def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
        recipe = Recipe(lr=0.5)
        return [
            Job(f"run{i}", train, recipe, {"number": i}, finished=lambda rows: len(rows) == 1)
            for i, train in enumerate(trains)
        ]

    def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
        if drawn is not None:
            drawn.append(runs)

    options = {"draw": draw, "jobs": jobs, "load": lambda args: data.load("digits"), "config": ["width"], **options}
    return Study("example", "An example.\n\nWith more to say.", add, **options)


def jobs_of(*trains: Train) -> list[Job]:
    """Jobs as a study makes them."""
    return [
        Job(f"run{i}", train, config={"number": i}, finished=lambda rows: len(rows) == 1)
        for i, train in enumerate(trains)
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_runs_are_done_once_and_drawn_each_time(
    shared: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[dict[str, Run]] = []
    command = ["--width", "3", "--output", str(tmp_path)]
    assert study(finishing, finishing, drawn=drawn, shared=shared).main(command) == 0
    assert "finished before" not in capsys.readouterr().err
    assert study(diverging, diverging, drawn=drawn, shared=shared).main(command) == 0  # nothing is trained
    assert "finished before" in capsys.readouterr().err
    for runs in drawn:
        assert list(runs) == ["run0", "run1"]
        assert all(run.finished and run.rows == [{"iteration": 1, "train_loss": 0.5}] for run in runs.values())
    assert len(drawn) == 2


def test_a_configuration_has_options_recipe_data_and_settings(tmp_path: Path) -> None:
    assert study(finishing, finishing).main(["--width", "3", "--output", str(tmp_path)]) == 0
    first, second = (json.loads((tmp_path / f"run{i}" / "config.json").read_text()) for i in (0, 1))
    assert (first["width"], first["lr"], first["number"], second["number"]) == (3, 0.5, 0, 1)
    assert first["data_digest"] == data.load("digits").digest
    assert "dataset" not in first  # which this study does not name


@pytest.mark.parametrize("shared", [False, True])
def test_a_stopped_study_says_how_to_go_on_and_draws_nothing(
    shared: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[dict[str, Run]] = []
    command = ["--overwrite", "--width", "3", "--output", str(tmp_path / "my runs")]
    stopped = study(finishing, interrupted, diverging, drawn=drawn, shared=shared)
    assert stopped.main(command) == 128 + signal.SIGTERM
    told = capsys.readouterr().err
    assert f"run1: stopped and saved in {tmp_path / 'my runs' / 'run1'}; to go on:\n" in told
    assert f"  python -m experiments.example --width 3 --output '{tmp_path / 'my runs'}'\n" in told
    assert not drawn


def test_divergence_in_turn_is_one_message_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study(diverging, remedy="another --width").main(["--output", str(tmp_path)]) == 2
    message = "run0: training diverged; choose another --width and another --output"
    assert capsys.readouterr().err == f"python -m experiments.example: error: {message}\n"


def test_a_file_in_place_of_the_folder_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert study(finishing, shared=True).main(["--output", str(tmp_path / "file")]) == 2
    assert "expected a folder, got a file" in capsys.readouterr().err


def test_processes_that_share_runs_take_turns_in_drawing(tmp_path: Path) -> None:
    def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
        with pytest.raises(HeldError):
            FolderLock(tmp_path)

    assert study(finishing, shared=True, draw=draw).main(["--output", str(tmp_path)]) == 0


def test_a_run_that_another_process_has_left_is_taken_over(tmp_path: Path) -> None:
    held: list[FolderLock] = []

    def beginning(store: RunStore) -> int:
        """As if another process had begun the next run, and died while the last one is trained."""
        (tmp_path / "run1").mkdir()
        held.append(FolderLock(tmp_path / "run1"))
        return finishing(store)

    def dying(store: RunStore) -> int:
        held.pop().release()
        return finishing(store)

    assert share(tmp_path, jobs_of(beginning, finishing, dying), {}, "") == 0
    assert all(read(tmp_path, job).finished for job in jobs_of(finishing, finishing, finishing))


def test_a_study_that_trains_nothing_has_no_options_of_training(tmp_path: Path) -> None:
    drawn: list[dict[str, Run]] = []
    only = study(finishing, drawn=drawn, trains=False)
    assert only.main(["--output", str(tmp_path / "out")]) == 0
    assert list(drawn[0]) == ["run0"]
    assert "--device" not in only.parser().format_help()


def test_default_folders() -> None:
    assert study(finishing).parse([]).output == Path("runs/example-digits")
    assert study(finishing, folder="NAME").parse([]).output == Path("runs/example")
