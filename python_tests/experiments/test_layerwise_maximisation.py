"""Layer-wise feature maximisation: its objective, what trains and what stays, when a layer ends, going on, sharing."""

from __future__ import annotations

import json
import math
import re
import signal
from pathlib import Path

import pytest
import studies
import torch
from torch import Tensor, nn
from torch.nn import functional

import ahkernels as ah
from experiments.common import data
from experiments.common.models import feedforward
from experiments.common.store import Row
from experiments.common.training import Recipe, Trainer, evaluate
from experiments.layerwise_maximisation.__main__ import STUDY, split
from experiments.layerwise_maximisation.layerwise_trainer import LayerwiseTrainer, network, objective, stages

TINY = [
    *("--lfm-widths", "12", "--end-to-end-widths", "16", "--depth", "3", "--batch-size", "300", "--epochs", "3"),
    *("--max-epochs", "6", "--patience", "2", "--probe-size", "20", "--checkpoint-every", "4"),
]
RUNS = ["end-to-end-width16", "lfm-width12"]
LFM = RUNS[1]


def results(output: Path) -> dict[str, bytes]:
    """Every table of every run."""
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in sorted(output.glob("*/*.csv"))}


@pytest.fixture(scope="module")
def digits() -> tuple[data.Dataset, tuple[Tensor, Tensor]]:
    """The training and the validation set that TINY has."""
    return split(data.load("digits"), 144, seed=0)


def layerwise(
    digits: tuple[data.Dataset, tuple[Tensor, Tensor]], ended: list[Row], epochs: int = 6, patience: int = 2
) -> LayerwiseTrainer:
    """The trainer of TINY."""
    training, validation = digits
    recipe = Recipe(lr=0.01, weight_decay=0.0, batch_size=300, epochs=epochs, optimizer="adam")
    model = network(64, 12, 3, 10, seed=0)
    return LayerwiseTrainer(model, training.train_x, training.train_y, validation, recipe, patience, ended.append)


# ---- the objective and the network


def test_the_objective_is_the_mean_over_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 2, 0, 0, 2])
    expected = sum(
        (float(features[i] @ features[j]) - (0.5 if y[i] == y[j] else 0.0)) ** 2 for i in range(7) for j in range(7)
    )
    assert float(objective(features, y)) == pytest.approx(expected / 49, rel=1e-10)
    ideal = math.sqrt(0.5) * functional.one_hot(y).double()
    assert float(objective(ideal, y)) == pytest.approx(0, abs=1e-12)


def test_every_layer_has_inputs_of_norm_one_and_a_bias() -> None:
    model = network(64, 12, 3, 10, seed=5)
    norms: list[Tensor] = []
    for module in model:
        if isinstance(module, nn.Linear):
            assert torch.equal(module.bias, torch.zeros(module.out_features))
            module.register_forward_pre_hook(lambda _, args: norms.append(args[0].norm(dim=1)))
    x = data.load("digits").train_x[:50]
    with torch.no_grad():
        assert model(x).shape == (50, 10)
        assert torch.allclose(model(3 * x), model(x), atol=1e-6)
    assert len(norms) == 9
    torch.testing.assert_close(torch.stack(norms[:3]), torch.ones(3, 50))
    assert float(model.get_submodule("layer1").weight.detach().square().mean()) == pytest.approx(2 / 12, rel=0.2)


def test_the_validation_set_is_no_part_of_the_training_set() -> None:
    whole = data.load("digits")
    training, (x, y) = split(whole, 144, seed=3)
    assert (len(training.train_y), len(y)) == (1293, 144)
    rows = torch.cat([training.train_x, x])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, whole.train_x.tolist()))
    assert torch.bincount(y).min() >= 13  # stratified


# ---- training


def test_a_layer_learns_and_those_below_stay(digits: tuple[data.Dataset, tuple[Tensor, Tensor]]) -> None:
    ended: list[Row] = []
    trainer = layerwise(digits, ended)
    initial = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    layer = {name: int(re.sub(r"\D", "", name)) for name in initial}
    kept: dict[str, Tensor] = {}
    while not trainer.done:
        now = trainer.layer
        trainer.step()
        state = trainer.model.state_dict()
        for name, value in state.items():
            if layer[name] < now:
                assert torch.equal(value, kept[name])
            if layer[name] > now:
                assert torch.equal(value, initial[name])
        if trainer.layer > now:
            kept |= {name: value.clone() for name, value in state.items() if layer[name] == now}
            assert any(not torch.equal(kept[name], initial[name]) for name in kept if layer[name] == now)
    assert [row["layer"] for row in ended] == [1, 2, 3]
    assert trainer.iteration == sum(row["epochs"] for row in ended) * 5 <= trainer.total == 90
    for row in ended:
        assert row["validation_loss"] < 0.95 * row["validation_loss_before"]
        assert 0 < row["epochs_kept"] <= row["epochs"] <= 6


def test_losses_in_the_table_are_those_of_the_finished_network(
    output: Path, digits: tuple[data.Dataset, tuple[Tensor, Tensor]]
) -> None:
    training, (x, y) = digits
    model = network(64, 12, 3, 10, seed=0)
    before = layer_losses(model, x, y)[0]
    model.load_state_dict(torch.load(output / LFM / "checkpoint.pt", weights_only=True)["state"]["model"])
    rows = studies.numbers(output / LFM / "layers.csv")
    assert rows[0]["validation_loss_before"] == pytest.approx(before, rel=1e-5)
    assert [row["validation_loss"] for row in rows] == pytest.approx(layer_losses(model, x, y), rel=1e-5)
    seen = training.train_x[:144], training.train_y[:144]
    assert [row["train_loss"] for row in rows] == pytest.approx(layer_losses(model, *seen), rel=1e-5)


@torch.no_grad()
def layer_losses(model: nn.Sequential, x: Tensor, y: Tensor) -> list[float]:
    """The loss of each layer on its own."""
    of_stages = [(index, stage(below(x))) for index, (below, stage) in enumerate(stages(model), start=1)]
    return [float(objective(z, y) if index < 3 else functional.cross_entropy(z, y)) for index, z in of_stages]


def test_a_layer_ends_after_patience_and_gets_its_best_weights_back(
    digits: tuple[data.Dataset, tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 4.0, 4.5, 3.0, 3.0, 3.5, 3.25, 1.0, *[2.0] * 100])  # the first before training
    monkeypatch.setattr(LayerwiseTrainer, "_validation_loss", lambda trainer: next(losses))
    ended: list[Row] = []
    trainer = layerwise(digits, ended, epochs=20, patience=3)
    while trainer.layer == 1:
        if trainer.iteration == 3 * trainer.batches_per_epoch:
            best = trainer.model.get_submodule("layer1").weight.clone()
        trainer.step()
    assert trainer.iteration == 6 * trainer.batches_per_epoch
    assert {name: ended[0][name] for name in ("layer", "epochs", "epochs_kept", "validation_loss")} == {
        **{"layer": 1, "epochs": 6, "epochs_kept": 3, "validation_loss": 3.0}
    }
    assert torch.equal(trainer.model.get_submodule("layer1").weight, best)
    while trainer.layer == 2:  # the loss before training, which none is below, does not count
        trainer.step()
    assert (ended[1]["epochs"], ended[1]["epochs_kept"], ended[1]["validation_loss_before"]) == (4, 1, 1.0)


def test_a_layer_ends_at_its_limit_of_epochs(
    digits: tuple[data.Dataset, tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter(range(1000, 0, -1))
    monkeypatch.setattr(LayerwiseTrainer, "_validation_loss", lambda trainer: float(next(losses)))
    ended: list[Row] = []
    trainer = layerwise(digits, ended, epochs=2)
    while not trainer.done:
        trainer.step()
    assert [(row["epochs"], row["epochs_kept"]) for row in ended] == [(2, 2)] * 3
    assert trainer.iteration == trainer.total == 30


# ---- the study


def test_a_study_leaves_runs_a_figure_and_a_table(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    told = capsys.readouterr()
    for method, width in (("LFM", 12), ("end to end", 16)):
        assert re.search(rf"^{method} +{width} +\d+ .*(\d+\.\d% +){{2}}± \d\.\d% \(binomial\)$", told.out, re.M)
    assert len(re.findall(r"^  per output: peak at layer [123] \(0\.\d{4}\) before training", told.out, re.M)) == 2
    assert f"figure: {tmp_path / 'layerwise_maximisation.png'}" in told.out
    assert (tmp_path / "layerwise_maximisation.png").read_bytes().startswith(b"\x89PNG")
    assert list(results(tmp_path)) == [f"{RUNS[0]}/metrics.csv", f"{LFM}/layers.csv", f"{LFM}/metrics.csv"]
    assert results(tmp_path) == results(output)
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    again = capsys.readouterr()
    assert "finished before" in again.err
    assert "iteration" not in again.err
    assert again.out == told.out


def test_both_networks_are_measured_by_the_library_on_the_same_images(
    output: Path, digits: tuple[data.Dataset, tuple[Tensor, Tensor]]
) -> None:
    training, _ = digits
    whole = data.load("digits")
    probe = data.stratified_subset(training.train_y, 20, seed=0)
    for name, model, seen in (
        (LFM, network(64, 12, 3, 10, seed=0), training),
        (RUNS[0], feedforward(64, 16, 3, 10, seed=0), whole),
    ):
        model.load_state_dict(torch.load(output / name / "checkpoint.pt", weights_only=True)["state"]["model"])
        _, last = studies.numbers(output / name / "metrics.csv")
        x, y = training.train_x[probe], training.train_y[probe]
        reports = ah.layerwise_alignment(model, x, y, precision="highest", centering=("per_output", "global"))
        for centering, report in reports.items():
            assert [last[f"cka/train/{centering}/layer{i}"] for i in (1, 2, 3)] == report.cka.tolist()
        assert (last["train_loss"], last["train_accuracy"]) == evaluate(model, seen.train_x, seen.train_y)
        assert (last["test_loss"], last["test_accuracy"]) == evaluate(model, whole.test_x, whole.test_y)


def test_end_to_end_is_plain_training_on_all_images(output: Path) -> None:
    whole = data.load("digits")
    model = feedforward(64, 16, 3, 10, seed=0)
    trainer = Trainer(model, whole.train_x, whole.train_y, Recipe(lr=0.03, batch_size=300, epochs=3))
    assert trainer.run([], lambda: None)
    first, last = studies.numbers(output / RUNS[0] / "metrics.csv")
    assert (last["iteration"], last["epoch"]) == (15, 3)
    assert last["train_loss"] == evaluate(model, whole.train_x, whole.train_y)[0] < first["train_loss"]


def test_a_network_that_diverges_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--lfm-lr", "1e30", "--epochs", "1", "--output", str(tmp_path)]
    assert STUDY.main(command) == 0
    told = capsys.readouterr()
    assert f"{LFM}: training diverged" in told.err
    assert "LFM" not in told.out
    assert [math.isnan(row["train_loss"]) for row in studies.numbers(tmp_path / LFM / "metrics.csv")] == [
        False,
        True,
    ]
    assert STUDY.main(command) == 0
    assert "finished before" in capsys.readouterr().err


# ---- going on, and processes that share a folder


@pytest.mark.parametrize("iteration", [0, 3, 14, 30, 31, -1])
def test_an_interrupted_study_goes_on_to_the_same_results(
    iteration: int,
    output: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signal comes in the middle of a layer, before its first step, or before the very last one."""
    at = iteration % int(studies.numbers(output / LFM / "metrics.csv")[-1]["iteration"])

    command = [*TINY, "--output", str(tmp_path)]
    with studies.interrupted(monkeypatch, lambda trainer: trainer.iteration == at, kind=LayerwiseTrainer):
        assert STUDY.main(command) == 128 + signal.SIGTERM
    assert "to go on:" in capsys.readouterr().err
    assert STUDY.main(command) == 0
    assert f"{LFM}: iteration 0/" not in capsys.readouterr().err
    assert results(tmp_path) == results(output)


@pytest.mark.slow
def test_two_processes_train_every_network_once(tmp_path: Path, output: Path) -> None:
    workers = [studies.start("layerwise_maximisation", *TINY, "--output", str(tmp_path)) for _ in range(2)]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    begun = re.findall(r"^(\S+): iteration 0/", "".join(errors), re.MULTILINE)
    assert sorted(begun) == RUNS
    assert results(tmp_path) == results(output)
    assert (tmp_path / "layerwise_maximisation.png").exists()


# ---- refusals


def test_another_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--max-epochs", "1", "--epochs", "1", "--output", str(tmp_path)]
    STUDY.main(command)
    before = results(tmp_path)
    assert STUDY.main([*command, "--patience", "1"]) == 2
    assert "patience: 2 there, 1 asked for" in capsys.readouterr().err
    assert results(tmp_path) == before
    assert STUDY.main([*command, "--seed", "1", "--overwrite"]) == 0
    after = results(tmp_path)
    assert all(after[name] != before[name] for name in before)
    config = json.loads((tmp_path / LFM / "config.json").read_text())
    assert (config["seed"], config["optimizer"], config["weight_decay"]) == (1, "adam", 0)


def test_presets_are_the_papers() -> None:
    mnist, cifar10 = (STUDY.parse(["--preset", name, "--data-dir", "data"]) for name in ("mnist", "cifar10"))
    assert (mnist.lfm_widths, mnist.end_to_end_widths, mnist.train_size) == ([32, 256], [32], 50_000)
    assert (cifar10.dataset, cifar10.lfm_widths, cifar10.end_to_end_widths) == ("cifar10", [256, 1024], [256])
    assert (mnist.lfm_lr, mnist.lr, mnist.epochs, mnist.depth) == (0.01, 0.003, 100, 10)
