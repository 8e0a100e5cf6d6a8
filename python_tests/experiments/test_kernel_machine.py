"""The study of kernel machines: its accuracies against dense algebra, going on, refusals."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import studies
import torch

import ahkernels as ah
from experiments.common import data
from experiments.common.models import feedforward
from experiments.kernel_machine.__main__ import STUDY, accuracy

LAYERS = ["layer1", "layer2", "layer3"]
TINY = [
    *("--depth", "3", "--width", "24", "--epochs", "4", "--batch-size", "100", "--lr", "0.05"),
    *("--probe-size", "40", "--test-size", "60"),
]


def read(output: Path) -> list[dict[str, float]]:
    return studies.numbers(output / "seed-0" / "metrics.csv")


def test_accuracies_are_those_of_dense_ridge_regression(output: Path) -> None:
    digits = data.load("digits")
    chosen = data.stratified_subset(digits.train_y, 40, 0)
    tests = data.stratified_subset(digits.test_y, 60, 0)
    x, y, test_y = digits.train_x[chosen], digits.train_y[chosen], digits.test_y[tests]
    together = torch.cat([x, digits.test_x[tests]])
    checkpoint = torch.load(output / "seed-0" / "checkpoint.pt", weights_only=True)
    rows = read(output)
    assert [row["iteration"] for row in rows] == [0, 60]
    for row, state in zip(rows, (None, checkpoint["state"]["model"]), strict=True):
        model = feedforward(64, 24, 3, 10, seed=0)
        if state is not None:
            model.load_state_dict(state)
        total = torch.zeros(1000, 1000, dtype=torch.float64)
        kernels = {name: kernel.to_dense().double() for name, kernel in ah.tangent_kernels(model, together).items()}
        for name in [*LAYERS, "network"]:
            k = total if name == "network" else kernels[name]
            total = total + k if name != "network" else total
            ridge = 0.1 * float(k[:400, :400].trace()) / 400 * torch.eye(400, dtype=torch.float64)
            targets = torch.nn.functional.one_hot(y, 10).double().flatten()
            predicted = (k[400:, :400] @ torch.linalg.solve(k[:400, :400] + ridge, targets)).view(60, 10).argmax(1)
            expected = float((predicted == test_y).double().mean())
            assert row[f"machine_accuracy/{name}"] == pytest.approx(expected, abs=1.1 / 60)  # a tie may be broken
            if name != "network":
                assert row[f"cka/{name}"] == pytest.approx(ah.layerwise_alignment(model, x, y)[name], rel=1e-5)
    assert rows[-1]["machine_accuracy/network"] > rows[0]["machine_accuracy/layer1"]


def test_what_a_run_prints_and_leaves(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "network" in printed and "the trained network itself: test accuracy" in printed
    assert (tmp_path / "kernel_machine.png").read_bytes().startswith(b"\x89PNG")
    assert read(tmp_path) == read(output)


def test_a_dead_layer_is_no_better_than_the_first_class() -> None:
    zero = ah.TangentKernel(ah.LayerFactors(torch.ones(4, 1, 2), torch.zeros(4, 1, 3, 2), bias=False))
    y = torch.tensor([0, 1, 2, 0])
    assert accuracy(zero, zero, y, y, 1e-3) == 0.5


def test_killed_and_started_again(output: Path, tmp_path: Path) -> None:
    with studies.start("kernel_machine", *TINY, "--checkpoint-every", "1", "--output", str(tmp_path)) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "iteration 0/60" in line:
                process.send_signal(signal.SIGKILL)
                break
    assert STUDY.main([*TINY, "--checkpoint-every", "1", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "seed-0" / "metrics.csv").read_bytes() == (output / "seed-0" / "metrics.csv").read_bytes()


def test_more_tests_than_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--test-size", "361", "--output", str(tmp_path / "run")]) == 2
    assert "argument --test-size: expected at most 360, the test samples of digits, got 361" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
