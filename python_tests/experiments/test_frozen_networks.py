"""The study of frozen networks: what stays and what moves, the whole network trained so, going on, sharing."""

from __future__ import annotations

import json
import math
import re
import signal
from pathlib import Path

import pytest
import studies
import torch

import ahkernels as ah
from experiments.common import data
from experiments.common.measuring import CENTERINGS
from experiments.common.models import feedforward
from experiments.common.training import Recipe, Trainer, evaluate
from experiments.frozen_networks.__main__ import STUDY
from experiments.frozen_networks.frozen_network import last_layer
from experiments.frozen_networks.initial_network import InitialNetwork

LAYERS = ["layer1", "layer2", "layer3"]
TINY = [
    *("--widths", "16", "32", "--noise-scales", "0.01", "1", "--depth", "3", "--epochs", "3", "--batch-size", "300"),
    *("--lr", "0.02", "--probe-size", "20", "--measurements", "4"),
]
RUNS = [f"width{width}-noise{noise}" for width in (16, 32) for noise in (0.01, 1.0)]
ITERATIONS = [0, 1, 4, 15]


def curve(row: dict[str, float], statistic: str) -> list[float]:
    return [row[f"{statistic}/{layer}"] for layer in LAYERS]


# ---- results


def test_a_study_leaves_runs_a_figure_and_a_table(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    told = capsys.readouterr()
    assert re.findall(r"width (\d+): features of 1,797 images", told.err) == ["16", "32"]  # once for both noise scales
    assert len(re.findall(r"^ +(?:16|32) +(?:0\.01|1) +3( +\d+\.\d%){4}  ± \d\.\d% \(binomial\)$", told.out, re.M)) == 4
    assert f"figure: {tmp_path / 'frozen_networks.png'}" in told.out
    assert (tmp_path / "frozen_networks.png").read_bytes().startswith(b"\x89PNG")
    assert list(studies.metrics(tmp_path)) == RUNS
    assert studies.metrics(tmp_path) == studies.metrics(output)
    lines = studies.numbers(tmp_path / "frozen_networks.csv")
    for name, line in zip(RUNS, lines, strict=True):
        rows = studies.numbers(tmp_path / name / "metrics.csv")
        assert [row["iteration"] for row in rows] == ITERATIONS
        assert line["best_train_accuracy"] == max(row["train_accuracy"] for row in rows)
        assert line["best_test_accuracy"] == max(row["test_accuracy"] for row in rows)
        for of in CENTERINGS:
            values = curve(rows[-1], f"cka/{of}")
            assert line[f"{of}_cka"] == max(values) == values[int(line[f"{of}_peak"]) - 1]
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    again = capsys.readouterr()
    assert "finished before" in again.err
    assert "features of" not in again.err
    assert again.out == told.out


@pytest.mark.parametrize("name", RUNS)
def test_forward_grams_stay_and_backward_grams_move(name: str, output: Path) -> None:
    first, *others = studies.numbers(output / name / "metrics.csv")
    for row in others:
        assert curve(row, "forward_cka") == pytest.approx(curve(first, "forward_cka"), rel=1e-6)
        assert row["cka/global/layer3"] == pytest.approx(first["cka/global/layer3"], rel=1e-6)  # of features alone
    for statistic in (f"{kind}/{of}" for kind in ("cka", "backward_cka") for of in CENTERINGS):
        for layer in LAYERS[:-1]:
            assert (
                abs(others[-1][f"{statistic}/{layer}"] / first[f"{statistic}/{layer}"] - 1) > 2e-3
            )  # a thousand times rounding


@pytest.mark.parametrize("bias", [False, True])
def test_the_initial_network_is_feedforward(bias: bool) -> None:
    """The weights are the same where its layers are drawn in another order, or again."""
    whole = feedforward(64, 16, 3, 10, seed=7, bias=bias)
    network = InitialNetwork(64, 16, 3, 10, 7, torch.device("cpu"))
    for layer in (3, 1, 2, 3, 1):
        assert torch.equal(network.weight(layer), whole.get_submodule(f"layer{layer}").weight)
    x = data.load("digits").train_x[:30]
    torch.testing.assert_close(network.features(x, "test"), whole[:-1](x).detach())
    found = list(network.tangent_kernels(x, last_layer(network, 0.1, bias), "highest"))
    with torch.no_grad():
        whole.layer3.weight.mul_(0.1)
    expected = ah.tangent_kernels(whole, x, precision="highest")
    assert [kernel.name for kernel in found] == list(reversed(expected))
    for kernel in found:
        torch.testing.assert_close(kernel.to_dense(), expected[kernel.name].to_dense())


def test_the_noise_scale_is_a_factor_of_the_last_layer_alone(output: Path) -> None:
    network = InitialNetwork(64, 16, 3, 10, 0, torch.device("cpu"))
    assert torch.equal(last_layer(network, 0.01, False).weight, 0.01 * feedforward(64, 16, 3, 10, seed=0).layer3.weight)
    for width in (16, 32):  # alignment knows no scale
        small, large = (
            studies.numbers(output / f"width{width}-noise{noise}" / "metrics.csv")[0] for noise in (0.01, 1.0)
        )
        for of in CENTERINGS:
            assert curve(small, f"cka/{of}") == pytest.approx(curve(large, f"cka/{of}"), rel=1e-5)
        assert small["train_loss"] < large["train_loss"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_whole_network_trained_with_its_lower_layers_frozen(name: str, output: Path) -> None:
    digits = data.load("digits")
    config = json.loads((output / name / "config.json").read_text())
    network = feedforward(64, config["width"], 3, 10, seed=0).requires_grad_(False)
    network.layer3.weight.mul_(config["noise_scale"]).requires_grad_()
    assert config["lr"] == pytest.approx(0.02 * 256 / config["width"])
    trainer = Trainer(network, digits.train_x, digits.train_y, Recipe(lr=config["lr"], batch_size=300, epochs=3))
    rows = studies.numbers(output / name / "metrics.csv")
    losses: list[tuple[float, float]] = []

    def measure() -> None:
        losses.append(evaluate(network, digits.train_x, digits.train_y))

    assert trainer.run(ITERATIONS, measure)
    assert [row["train_loss"] for row in rows] == pytest.approx([loss for loss, _ in losses], rel=1e-5)
    assert rows[0]["train_loss"] > 1.1 * rows[-1]["train_loss"]
    probe = data.stratified_subset(digits.train_y, 20, seed=0)
    x, y = digits.train_x[probe], digits.train_y[probe]
    for of, report in ah.layerwise_alignment(network, x, y, precision="highest", centering=CENTERINGS).items():
        assert curve(rows[-1], f"cka/{of}") == pytest.approx(report.cka.tolist(), rel=1e-4)


def test_a_checkpoint_holds_the_last_layer_alone(output: Path) -> None:
    state = torch.load(output / RUNS[0] / "checkpoint.pt", weights_only=True)["state"]
    assert {name: list(value.shape) for name, value in state["model"].items()} == {"weight": [10, 16]}


def test_a_run_that_diverges_ends_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--widths", "16", "--noise-scales", "1", "--lr", "1e30", "--output", str(tmp_path)]
    assert STUDY.main(command) == 0
    assert f"{RUNS[1]}: training diverged" in capsys.readouterr().err
    rows = studies.numbers(tmp_path / RUNS[1] / "metrics.csv")
    assert [math.isnan(row["train_loss"]) for row in rows] == [*[False] * (len(rows) - 1), True]
    assert rows[-1]["iteration"] < ITERATIONS[-1]
    (line,) = studies.numbers(tmp_path / "frozen_networks.csv")  # of what was measured before
    assert line["epochs"] == rows[-2]["epoch"]
    assert (tmp_path / "frozen_networks.png").exists()
    assert STUDY.main(command) == 0
    assert "finished before" in capsys.readouterr().err


# ---- going on, and processes that share a folder


@pytest.mark.parametrize("iteration", [0, 3, 14])
def test_an_interrupted_study_goes_on_to_the_same_results(
    iteration: int,
    output: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [*TINY, "--widths", "16", "--output", str(tmp_path)]
    with studies.interrupted(monkeypatch, lambda trainer: trainer.iteration == iteration):
        assert STUDY.main(command) == 128 + signal.SIGTERM
    told = capsys.readouterr().err
    assert f"{RUNS[0]}: stopped and saved" in told
    assert "to go on:" in told
    assert not (tmp_path / "frozen_networks.png").exists()
    assert STUDY.main(command) == 0
    assert f"{RUNS[0]}: iteration 0/" not in capsys.readouterr().err
    assert studies.metrics(tmp_path) == {
        name: content for name, content in studies.metrics(output).items() if name in RUNS[:2]
    }


@pytest.mark.slow
def test_two_processes_train_every_network_once(tmp_path: Path, output: Path) -> None:
    workers = [studies.start("frozen_networks", *TINY, "--output", str(tmp_path)) for _ in range(2)]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    begun = re.findall(r"^(\S+): iteration 0/", "".join(errors), re.MULTILINE)
    assert sorted(begun) == RUNS
    assert studies.metrics(tmp_path) == studies.metrics(output)
    assert (tmp_path / "frozen_networks.png").exists()


# ---- refusals


def test_another_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--widths", "16", "--epochs", "1", "--output", str(tmp_path)]
    STUDY.main(command)
    before = studies.metrics(tmp_path)
    assert STUDY.main([*command, "--depth", "4"]) == 2
    assert "depth: 3 there, 4 asked for" in capsys.readouterr().err
    assert studies.metrics(tmp_path) == before
    assert STUDY.main([*command, "--depth", "4", "--overwrite"]) == 0
    assert studies.metrics(tmp_path) != before


def test_presets_are_the_papers() -> None:
    args = STUDY.parse(["--preset", "mnist", "--data-dir", "data", "--epochs", "7"])
    assert (args.widths, args.noise_scales, args.depth) == ([2048, 10_000], [0.01, 1.0], 10)
    assert args.epochs == 7  # what is given counts more
