"""The study of the whole training set: its alignments against the library, going on between layers, refusals."""

from __future__ import annotations

import csv
import re
import signal
from pathlib import Path

import pytest
import studies
import torch

import ahkernels as ah
from experiments.common import data
from experiments.common.models import feedforward
from experiments.whole_training_set.__main__ import STUDY

TINY = [
    *("--depth", "3", "--width", "16", "--epochs", "2", "--batch-size", "100", "--lr", "0.05", "--train-size", "300"),
    *("--probe-size", "30", "--probes", "2", "--products", "30", "--exact-layers", "2", "3"),
]


def alignments(output: Path) -> list[dict[str, float]]:
    """The table without what the clock says."""
    with (output / "seed-0" / "alignments.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert all(row.pop("seconds") > 0 for row in rows)
    return rows


def test_alignments_are_the_librarys(output: Path) -> None:
    digits = data.training_subset(data.load("digits"), 300, 0)
    model = feedforward(64, 16, 3, 10, seed=0)
    model.load_state_dict(torch.load(output / "seed-0" / "checkpoint.pt", weights_only=True)["state"]["model"])
    exact = ah.layerwise_alignment(model, digits.train_x, digits.train_y)
    rows = alignments(output)
    assert len(rows) == 2 * 3 + 3 + 2
    for row in rows:
        layer = f"layer{int(row['layer'])}"
        if row["samples"] < 300:
            chosen = data.stratified_subset(digits.train_y, 30, int(row["probe"]))
            probe = ah.layerwise_alignment(model, digits.train_x[chosen], digits.train_y[chosen])
            assert row["cka"] == pytest.approx(probe[layer], rel=1e-6)
        elif row["products"]:
            assert row["products"] == 30
            assert abs(row["cka"] - exact[layer]) <= 5 * row["cka_error"]
            assert 0 < row["cka_error"] < 0.2 * row["cka"]
        else:
            assert row["cka"] == pytest.approx(exact[layer], rel=1e-6) and row["cka_error"] == 0


def test_what_a_run_prints_and_leaves(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\n  1 +0\.\d{4} \.\.\. 0\.\d{4}  0\.\d{4} ± 0\.\d{4} in \d+\.\d s\n", printed)
    assert re.search(r"\n  2 +.* in \d+\.\d s +0\.\d{4} in \d+\.\d s\n", printed)
    assert (tmp_path / "whole_training_set.png").read_bytes().startswith(b"\x89PNG")
    assert alignments(tmp_path) == alignments(output)


def test_killed_between_two_layers_and_started_again(output: Path, tmp_path: Path) -> None:
    with studies.start("whole_training_set", *TINY, "--output", str(tmp_path)) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "layer 3 on 30 images" in line:
                process.send_signal(signal.SIGKILL)
                break
    begun = alignments(tmp_path)
    assert 3 <= len(begun) < 11
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    assert alignments(tmp_path) == alignments(output)


def test_a_probe_of_all_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--probe-size", "300", "--output", str(tmp_path / "run")]) == 2
    assert "argument --probe-size: expected less than 300, the training samples, got 300" in capsys.readouterr().err
