"""The study of similarity between layers: its matrices against the library, going on, refusals."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import studies
import torch

import ahkernels as ah
from experiments.common import data
from experiments.common.models import feedforward
from experiments.layer_similarity.__main__ import STUDY
from experiments.layer_similarity.tables import BACKWARD, END, FORWARD, MOVED, START, TABLES

LAYERS = ["layer1", "layer2", "layer3", "layer4"]
TINY = [
    *("--depth", "4", "--width", "16", "--epochs", "3", "--batch-size", "300", "--lr", "0.05"),
    *("--probe-size", "20", "--measurements", "4"),
]


def matrix(output: Path, name: str) -> torch.Tensor:
    """Read a table as a matrix [L, L]."""
    rows = studies.numbers(output / "seed-0" / f"{name}.csv")
    assert [row["layer"] for row in rows] == [1, 2, 3, 4]
    assert list(rows[0]) == ["layer", *LAYERS]
    return torch.tensor([[row[layer] for layer in LAYERS] for row in rows], dtype=torch.float64)


def results(output: Path) -> dict[str, bytes]:
    """Every table."""
    return {path.name: path.read_bytes() for path in sorted((output / "seed-0").glob("*.csv"))}


# ---- results


def test_a_run_leaves_metrics_matrices_a_figure_and_a_table(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    printed = capsys.readouterr().out
    assert re.search(r"layer3( +0\.\d{4}){3}\n", printed)
    assert re.search(r"layer4 +0\.\d{4}\n", printed)  # has no next
    assert re.search(r"forward Grams after training: 0\.\d{4} \(0\.\d{4}\)", printed)
    assert f"figure: {tmp_path / 'layer_similarity.png'}" in printed
    assert (tmp_path / "layer_similarity.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(results(tmp_path)) == sorted(f"{name}.csv" for name in ("metrics", *TABLES))
    assert results(tmp_path) == results(output)
    rows = studies.numbers(tmp_path / "seed-0" / "metrics.csv")
    assert [row["iteration"] for row in rows] == [0, 1, 4, 15]
    assert list(rows[0])[6:] == [f"with_start/{layer}" for layer in LAYERS]


def test_matrices_are_the_librarys(output: Path) -> None:
    """Between the network that the seed gives and the one in the checkpoint, on the stratified probe."""
    digits = data.load("digits")
    x = digits.train_x[data.stratified_subset(digits.train_y, 20, seed=0)]
    model = feedforward(64, 16, 4, 10, seed=0)
    start = ah.tangent_kernels(model, x, precision="highest")
    checkpoint = torch.load(output / "seed-0" / "checkpoint.pt", weights_only=True)
    model.load_state_dict(checkpoint["state"]["model"])
    end = ah.tangent_kernels(model, x, precision="highest")
    for name, expected in {
        START: ah.similarity(start),
        END: ah.similarity(end),
        MOVED: ah.similarity(start, end),
        FORWARD: ah.similarity([kernel.forward_gram() for kernel in end.values()]),
        BACKWARD: ah.similarity([kernel.backward_gram() for kernel in end.values()]),
    }.items():
        torch.testing.assert_close(matrix(output, name), expected, rtol=1e-5, atol=1e-6)
    assert float(matrix(output, MOVED)[1, 2]) == pytest.approx(ah.cka(start["layer2"], end["layer3"]), rel=1e-4)


def test_matrices_are_similarities(output: Path) -> None:
    for name in TABLES:
        values = matrix(output, name)
        assert bool(((values > 0) & (values < 1 + 1e-6)).all())
        if name != MOVED:
            torch.testing.assert_close(values, values.T, rtol=0, atol=2e-6)
            torch.testing.assert_close(values.diagonal(), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-5)
    assert not torch.allclose(matrix(output, MOVED), matrix(output, MOVED).T, atol=1e-3)
    first, *_, last = studies.numbers(output / "seed-0" / "metrics.csv")
    assert [first[f"with_start/{layer}"] for layer in LAYERS] == pytest.approx([1.0] * 4, abs=1e-5)
    assert [last[f"with_start/{layer}"] for layer in LAYERS] == pytest.approx(
        matrix(output, MOVED).diagonal().tolist(), rel=1e-5
    )


def test_measuring_more_often_does_not_change_the_end(output: Path, tmp_path: Path) -> None:
    assert STUDY.main([*TINY, "--measurements", "9", "--checkpoint-every", "2", "--output", str(tmp_path)]) == 0
    many = results(tmp_path)
    few = results(output)
    often, seldom = (studies.texts(folder / "seed-0" / "metrics.csv") for folder in (tmp_path, output))
    assert len(often) == 9 and often[-1] == seldom[-1]
    del many["metrics.csv"]
    assert many == {name: content for name, content in few.items() if name != "metrics.csv"}


def test_one_layer_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--depth", "1", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "pairs" not in printed
    assert re.search(r"layer1 +[01]\.\d{4}\n", printed)


def test_an_undefined_similarity_is_a_gap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = ah.similarity

    def with_gap(kernels: list[ah.TangentKernel]) -> torch.Tensor:
        found = true(kernels)
        found[1], found[:, 1] = torch.nan, torch.nan
        return found

    monkeypatch.setattr(ah, "similarity", with_gap)
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    assert re.search(r"layer2 +nan", capsys.readouterr().out)
    assert bool(matrix(tmp_path, BACKWARD)[1].isnan().all())


# ---- going on


@pytest.mark.parametrize("iteration", [0, 3, 14])
def test_an_interrupted_run_goes_on_to_the_same_results(
    iteration: int,
    output: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [*TINY, "--output", str(tmp_path)]
    with studies.interrupted(monkeypatch, lambda trainer: trainer.iteration == iteration, signal.SIGINT):
        assert STUDY.main(command) == 128 + signal.SIGINT
    assert "to go on:" in capsys.readouterr().err
    assert not (tmp_path / "layer_similarity.png").exists()
    assert STUDY.main(command) == 0
    assert "iteration 0/" not in capsys.readouterr().err
    assert results(tmp_path) == results(output)
    assert STUDY.main(command) == 0
    assert "finished before" in capsys.readouterr().err


def test_another_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--epochs", "1", "--output", str(tmp_path)]
    STUDY.main(command)
    before = results(tmp_path)
    assert STUDY.main([*command, "--lr", "0.02"]) == 2
    assert "lr: 0.05 there, 0.02 asked for" in capsys.readouterr().err
    assert results(tmp_path) == before
    assert STUDY.main([*command, "--lr", "0.02", "--overwrite"]) == 0
    after = results(tmp_path)
    assert after["similarity-start.csv"] == before["similarity-start.csv"]
    assert after["similarity-end.csv"] != before["similarity-end.csv"]


# ---- refusals


def test_divergence_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--lr", "1e18", "--measurements", "2", "--output", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "seed-0: training diverged" in message
    assert "smaller --lr" in message
    assert bool(matrix(tmp_path, START).isfinite().all())  # what was measured before is kept
