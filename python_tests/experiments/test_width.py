"""The study of width: learning rates, what moves, the limit, and runs that go on."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import studies
import torch

import ahkernels
from experiments.common import data
from experiments.common.models import feedforward
from experiments.common.training import Recipe, Trainer, flushed_denormals
from experiments.width.__main__ import STUDY, networks

TINY = [
    *("--widths", "8", "16", "--depth", "3", "--epochs", "2", "--train-size", "200", "--probe-size", "20"),
    *("--measurements", "3", "--lr", "0.002"),
]


def test_a_study_leaves_runs_a_table_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    assert "figure: " in capsys.readouterr().out
    names = [f"width{n}-exponent{e}-seed0" for n in (8, 16) for e in ("0.5", "1")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "width.csv", "width.png"])
    lines = studies.numbers(tmp_path / "width.csv")
    assert [(line["width"], line["exponent"]) for line in lines] == [(8, 0.5), (16, 0.5), (8, 1), (16, 1)]
    assert [line["lr"] for line in lines] == pytest.approx([0.002 * 32**0.5, 0.008, 0.064, 0.032])

    digits = data.training_subset(data.load("digits"), 200, 0)
    start = feedforward(64, 16, 3, 10, seed=0)
    recipe = Recipe(lr=0.032, batch_size=32, epochs=2)
    trainer = Trainer(feedforward(64, 16, 3, 10, seed=0), digits.train_x, digits.train_y, recipe)
    probe = data.stratified_subset(digits.train_y, 20, seed=0)
    with flushed_denormals(), torch.no_grad():
        with torch.enable_grad():
            trainer.run([], lambda: None)
        changed = [
            float((a.weight - b.weight).norm() / b.weight.norm())
            for a, b in zip(trainer.model, start, strict=True)
            if isinstance(a, torch.nn.Linear)
        ]
    report = ahkernels.layerwise_alignment(
        trainer.model, digits.train_x[probe], digits.train_y[probe], precision="highest"
    )
    last = studies.numbers(tmp_path / names[-1] / "metrics.csv")[-1]
    assert [last[f"moved/layer{layer}"] for layer in (1, 2, 3)] == changed
    assert [last[f"cka/{layer}"] for layer in report.layers] == report.cka.tolist()
    assert (lines[-1]["peak"], lines[-1]["cka"]) == (1 + int(report.cka.argmax()), float(report.cka.max()))
    first = studies.numbers(tmp_path / names[-1] / "metrics.csv")[0]
    assert [first[f"moved/layer{layer}"] for layer in (1, 2, 3)] == [0, 0, 0]


def test_wide_networks_move_less_and_start_nearer_to_the_limit(tmp_path: Path) -> None:
    widths = [32, 128, 512]
    command = ["--widths", *map(str, widths), "--lr-exponents", "1", "--depth", "3", "--epochs", "1"]
    assert STUDY.main([*command, "--train-size", "600", "--probe-size", "100", "--output", str(tmp_path)]) == 0
    moved = [line["moved"] for line in studies.numbers(tmp_path / "width.csv")]
    assert moved[0] > 1.5 * moved[1] > 1.5**2 * moved[2]
    digits = data.training_subset(data.load("digits"), 600, 0)
    chosen = data.stratified_subset(digits.train_y, 100, seed=0)
    theory = ahkernels.signal_propagation
    limit = theory.layer_kernels(theory.Network("relu"), digits.train_x[chosen], 3).alignment(
        torch.nn.functional.one_hot(digits.train_y[chosen], 10).double()
    )
    distances = []
    for n in widths:
        row = studies.numbers(tmp_path / f"width{n}-exponent1-seed0" / "metrics.csv")[0]
        distances.append(np.abs([row[f"cka/layer{layer + 1}"] - float(limit.cka[layer]) for layer in range(3)]).max())
    assert distances[0] > distances[1] > distances[2]


def test_an_interrupted_study_ends_with_the_same_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert STUDY.main([*TINY, "--output", str(tmp_path / "alone")]) == 0
    command = [*TINY, "--output", str(tmp_path / "out")]
    with studies.interrupted(monkeypatch, lambda trainer: trainer.iteration == 5):
        assert STUDY.main(command) == 128 + signal.SIGTERM
    assert STUDY.main(command) == 0
    assert studies.metrics(tmp_path / "out") == studies.metrics(tmp_path / "alone")
    before = (tmp_path / "out" / "width.png").read_bytes()
    assert before == (tmp_path / "alone" / "width.png").read_bytes()
    assert STUDY.main(command) == 0
    assert (tmp_path / "out" / "width.png").read_bytes() == before


def test_a_run_that_diverges_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--lr", "1e18", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert "training diverged" in told
    assert "nothing to draw" in told


def test_test_samples_are_as_many_as_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--widths", "8", "--lr-exponents", "1", "--output", str(tmp_path)]
    assert STUDY.main([*command, "--test-size", "361"]) == 2
    assert "--test-size: expected at most 360, the test samples of digits, got 361" in capsys.readouterr().err
    assert STUDY.main([*command, "--test-size", "20"]) == 0
    for row in studies.numbers(tmp_path / "width8-exponent1-seed0" / "metrics.csv"):
        assert row["test_accuracy"] * 20 == pytest.approx(round(row["test_accuracy"] * 20))


def test_the_preset_and_what_overrides_it() -> None:
    args = STUDY.parse(["--preset", "fashion-mnist", "--data-dir", "d", "--lr-exponents", "1"])
    found = networks(args)
    assert [one.width for one in found] == [8192, 4096, 2048, 1024, 512, 256, 128]
    assert found[5].lr == 0.003
    assert found[0].lr == pytest.approx(0.003 / 32)
