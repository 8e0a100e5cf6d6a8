"""The study of spectra: its numbers against the library and dense matrices, conditions, going on, refusals."""

from __future__ import annotations

import json
import math
import re
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import reference
import studies
import torch

import ahkernels as ah
import experiments
from experiments.common import data
from experiments.common.models import feedforward
from experiments.spectrum.__main__ import STATISTICS, STUDY
from experiments.spectrum.conditions import Condition
from experiments.spectrum.figure import Outcome
from experiments.spectrum.tables import print_tables

LAYERS = ["layer1", "layer2", "layer3"]
TINY = [
    *("--depth", "3", "--width", "16", "--epochs", "3", "--batch-size", "300", "--probe-size", "20"),
    *("--conditions", "0.05", "0.01:0.3", "--eigenvalues", "200"),
]
CLEAN, NOISY = "lr0.05", "lr0.01-noise0.3"


def results(output: Path) -> dict[str, bytes]:
    """Every table of every condition."""
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.glob("*/*.csv"))}


def trained(folder: Path) -> torch.nn.Module:
    """The network of TINY's checkpoint."""
    model = feedforward(64, 16, 3, 10, seed=9)
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["model"])
    return model


# ---- results


def test_a_study_leaves_tables_figures_and_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    assert STUDY.main([*TINY, "--eigenvalues", "5", "--output", str(tmp_path)]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    printed = capsys.readouterr().out
    assert re.search(rf"{CLEAN}: test accuracy \d+\.\d%", printed)
    assert re.search(r"layer3( +\d+\.\d{4}){5} +\d\.\de[-+]\d\d", printed)
    assert re.search(rf"^  {NOISY}: (nowhere|layer\d)", printed, re.MULTILINE)
    for name in ("spectrum", "stable_rank"):
        assert str(tmp_path / f"{name}.png") in printed
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = studies.numbers(tmp_path / CLEAN / "metrics.csv")
    assert [row["iteration"] for row in rows] == [0, 15]
    statistics = "cka", "stable_rank", "label_correlation", "fisher_stable_rank", "fisher_label_correlation"
    assert list(rows[0])[6:] == [f"{statistic}/{layer}" for statistic in statistics for layer in LAYERS]
    eigenvalues = studies.numbers(tmp_path / CLEAN / "eigenvalues.csv")
    assert list(eigenvalues[0]) == ["index", *LAYERS]
    assert [row["index"] for row in eigenvalues] == [1, 2, 3, 4, 5]
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in (CLEAN, NOISY)]
    assert {key: (configs[0][key], configs[1][key]) for key in configs[0] if configs[0][key] != configs[1][key]} == {
        "lr": (0.05, 0.01),
        "label_noise": (0.0, 0.3),
    }


@pytest.mark.parametrize(("name", "noise"), [(CLEAN, 0.0), (NOISY, 0.3)])
def test_the_last_row_and_the_eigenvalues_are_the_final_networks(output: Path, name: str, noise: float) -> None:
    """The library measures the network on the probe, with the labels that it was trained on."""
    digits = data.load("digits")
    probe = data.stratified_subset(digits.train_y, 20, seed=0)
    x, y = digits.train_x[probe], data.with_label_noise(digits, noise, seed=0).train_y[probe]
    assert bool((y != digits.train_y[probe]).any()) == (noise > 0)
    report = ah.layerwise_alignment(trained(output / name), x, y, statistics=STATISTICS, precision="highest")
    last, table = (
        studies.numbers(output / name / "metrics.csv")[-1],
        studies.numbers(output / name / "eigenvalues.csv"),
    )
    for statistic in ("cka", *STATISTICS):
        assert [last[f"{statistic}/{layer}"] for layer in LAYERS] == getattr(report, statistic).tolist()
    for layer, kernel in ah.tangent_kernels(trained(output / name), x, precision="highest").items():
        expected = ah.eigenvalues(kernel, 200)
        got = torch.tensor([row[layer] for row in table], dtype=torch.float64)
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-12 * float(expected[0]))


@pytest.mark.parametrize("name", [CLEAN, NOISY])
def test_ranks_and_correlations_fit_the_spectrum(output: Path, name: str) -> None:
    """All of the eigenvalues are there, so that norms follow from them."""
    table = studies.numbers(output / name / "eigenvalues.csv")
    for row in studies.numbers(output / name / "metrics.csv"):
        for layer in LAYERS:
            rank, correlation = row[f"stable_rank/{layer}"], row[f"label_correlation/{layer}"]
            assert row[f"cka/{layer}"] == pytest.approx(correlation / math.sqrt(rank), rel=1e-9)
            assert 1 - 1e-9 < rank < 200
            assert 0 < correlation < 1 + 1e-9
            assert 1 - 1e-9 < row[f"fisher_stable_rank/{layer}"] < 180  # a softmax has one direction less
    for layer in LAYERS:
        values = [line[layer] for line in table]
        assert len(values) == 200
        assert all(a >= b for a, b in pairwise(values))
        assert values[-1] > -1e-9 * values[0]
        assert sum(v**2 for v in values) / values[0] ** 2 == pytest.approx(row[f"stable_rank/{layer}"], rel=1e-6)


def test_fishers_stable_rank_is_that_of_the_dense_matrix(output: Path) -> None:
    """H K has the eigenvalues of the Fisher information Psi H Psi^T, and needs no square root."""
    digits = data.load("digits")
    model, x = trained(output / CLEAN), digits.train_x[data.stratified_subset(digits.train_y, 20, seed=0)]
    p = model(x).detach().double().softmax(1)
    h = torch.block_diag(*(torch.diag_embed(p) - p[:, :, None] * p[:, None, :]))
    last = studies.numbers(output / CLEAN / "metrics.csv")[-1]
    for layer, jacobian in reference.jacobians(model.double(), x.double()).items():
        values = torch.linalg.eigvals(h @ reference.kernels_of_outputs(jacobian, "all")).real
        rank = float(values.square().sum() / values.max() ** 2)
        assert last[f"fisher_stable_rank/{layer}"] == pytest.approx(rank, rel=1e-4)


def test_conditions_start_alike_and_differ_in_their_labels_alone(output: Path) -> None:
    clean, noisy = (studies.numbers(output / name / "metrics.csv")[0] for name in (CLEAN, NOISY))
    for column in clean:
        blind = column.startswith(("iteration", "epoch", "test", "stable_rank", "fisher_stable_rank"))
        assert (clean[column] == noisy[column]) == blind, column


def test_the_table_names_layers_where_fisher_has_the_greater_rank(capsys: pytest.CaptureFixture[str]) -> None:
    def outcome(name: str, fisher: list[float]) -> Outcome:
        row = {"train_accuracy": 1.0, "test_accuracy": 0.5, "train_loss": 0.0, "test_loss": 1.0}
        ranks = [2.0, math.nan, 4.0]
        for statistic in ("cka", "label_correlation", "fisher_label_correlation"):
            row |= {f"{statistic}/{layer}": 0.1 for layer in LAYERS}
        row |= {f"stable_rank/{layer}": value for layer, value in zip(LAYERS, ranks, strict=True)}
        row |= {f"fisher_stable_rank/{layer}": value for layer, value in zip(LAYERS, fisher, strict=True)}
        return Outcome(name, name, 100, [row], [dict.fromkeys(LAYERS, 3.0) | {"layer2": 0.0}])

    print_tables([outcome("a", [1.5, 1.0, 5.0]), outcome("b", [2.0, 1.0, 3.0])], 1)
    printed = capsys.readouterr().out
    assert "  a: layer3 (5.00 to 4.00)\n  b: nowhere\n" in printed
    assert re.search(r"layer2 +0\.1000 +nan .* nan\n", printed)


# ---- going on


def test_an_interrupted_study_goes_on_to_the_same_results(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TINY, "--output", str(tmp_path)]
    for lr, iteration in ((0.05, 4), (0.01, 14)):  # the second time before the last step of the other condition
        where = lr, iteration
        with studies.interrupted(
            monkeypatch, lambda trainer, where=where: (trainer.recipe.lr, trainer.iteration) == where
        ):
            assert STUDY.main(command) == 128 + signal.SIGTERM
        told = capsys.readouterr().err
        assert "to go on:" in told
        assert "Traceback" not in told
    assert not (tmp_path / "spectrum.png").exists()
    assert STUDY.main(command) == 0
    assert "iteration 0/" not in capsys.readouterr().err
    assert results(tmp_path) == results(output)
    assert sorted(results(tmp_path)) == [
        f"{name}/{t}.csv" for name in (NOISY, CLEAN) for t in ("eigenvalues", "metrics")
    ]


def test_a_finished_study_is_only_drawn_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--eigenvalues", "5", "--output", str(tmp_path)]
    STUDY.main(command)
    first, tables = capsys.readouterr().out, results(tmp_path)
    figure = (tmp_path / "stable_rank.png").read_bytes()
    (tmp_path / CLEAN / "eigenvalues.csv").unlink()
    (tmp_path / "stable_rank.png").unlink()
    assert STUDY.main(command) == 0
    again = capsys.readouterr()
    assert "finished before" in again.err
    assert again.out == first
    assert results(tmp_path) == tables
    assert (tmp_path / "stable_rank.png").read_bytes() == figure


def test_another_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--conditions", "0.05", "--epochs", "1", "--eigenvalues", "5", "--output", str(tmp_path)]
    STUDY.main(command)
    assert STUDY.main([*command, "--eigenvalues", "6"]) == 2
    assert "eigenvalues: 5 there, 6 asked for" in capsys.readouterr().err
    assert STUDY.main([*command, "--eigenvalues", "6", "--overwrite"]) == 0
    assert len(studies.numbers(tmp_path / CLEAN / "eigenvalues.csv")) == 6


@pytest.mark.filterwarnings("ignore:kernel of layer 'network.38' is constant")  # so narrow a VGG19 is, per output
@pytest.mark.parametrize(("name", "layers"), [("vgg19", 17), ("resnet18", 21)])
def test_image_networks(name: str, layers: int, tmp_path: Path) -> None:
    command = [*("--batch-size", "16", "--train-size", "32", "--epochs", "1", "--probe-size", "6", "--model", name)]
    command += [*("--width-factor", "0.02", "--eigenvalues", "4", "--conditions", "0.01", "--output", str(tmp_path))]
    assert STUDY.main(command) == 0
    (first, *_) = studies.numbers(tmp_path / "lr0.01" / "eigenvalues.csv")
    last = studies.numbers(tmp_path / "lr0.01" / "metrics.csv")[-1]
    assert list(first)[1:] == [key.removeprefix("fisher_stable_rank/") for key in last if "fisher_stable_rank" in key]
    assert len(first) == 1 + layers
    config = json.loads((tmp_path / "lr0.01" / "config.json").read_text())
    assert (config["model"], config["width_factor"], config["augment"]) == (name, 0.02, False)


# ---- refusals


def test_conditions_are_parsed() -> None:
    assert STUDY.parse(["--conditions", "1e-2", "0.01:0.25"]).conditions == [
        Condition(0.01, 0.0),
        Condition(0.01, 0.25),
    ]
    first, second = (Condition(0.01, noise) for noise in (0.0, 0.25))
    assert (str(first), first.name, first.label) == ("0.01", "lr0.01", "learning rate 0.01")
    assert (str(second), second.name) == ("0.01:0.25", "lr0.01-noise0.25")
    assert second.label == "learning rate 0.01, 25% random labels"


def test_divergence_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--conditions", "1e18", "--output", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "lr1e+18: training diverged" in message
    assert "smaller learning rates in --conditions" in message


def test_the_preset_is_that_of_the_committed_results() -> None:
    args = STUDY.parse(["--preset", "fashion-mnist", "--data-dir", "d"])
    results = Path(experiments.__file__).parent / "results" / "spectrum-fashion-mnist"
    for of in args.conditions:
        found = json.loads((results / of.name / "config.json").read_text())
        assert {name: getattr(args, name) for name in ("depth", "width", "batch_size", "epochs", "probe_size")} == {
            name: found[name] for name in ("depth", "width", "batch_size", "epochs", "probe_size")
        }
