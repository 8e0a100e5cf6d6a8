"""The study of the bias of few samples: its alignments against the library, going on between subsets, refusals."""

from __future__ import annotations

import csv
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import studies
import torch

import ahkernels as ah
from experiments.cka_bias.__main__ import STUDY
from experiments.cka_bias.tables import alignments
from experiments.common import data
from experiments.common.models import feedforward

TINY = [
    *("--depth", "2", "--width", "16", "--epochs", "2", "--batch-size", "100", "--lr", "0.05", "--train-size", "300"),
    *("--sizes", "12", "40", "--subsets", "3"),
]


def table(output: Path) -> list[dict[str, float]]:
    with (output / "seed-0" / "alignments.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_alignments_are_the_librarys(output: Path) -> None:
    """Of the initial and the trained network, on the subset of a draw, which contains the smaller one."""
    digits = data.training_subset(data.load("digits"), 300, 0)
    model = feedforward(64, 16, 2, 10, seed=0)
    rows = table(output)
    assert len(rows) == 2 * 2 * 3 * 2
    states = sorted({row["iteration"] for row in rows})
    for iteration in states:
        if iteration:
            checkpoint = torch.load(output / "seed-0" / "checkpoint.pt", weights_only=True)
            model.load_state_dict(checkpoint["state"]["model"])
        for row in (row for row in rows if row["iteration"] == iteration):
            chosen = np.random.default_rng([0, int(row["subset"]), 0]).permutation(300)[: int(row["samples"])]
            x, y = digits.train_x[chosen], digits.train_y[chosen]
            if row["shuffled"]:
                y = y[np.random.default_rng([0, int(row["subset"]), 1]).permutation(len(y))]
            for layer, kernel in ah.tangent_kernels(model, x, outputs="trace").items():
                assert row[f"cka/{layer}"] == pytest.approx(ah.cka(kernel, y), rel=1e-5)
                assert row[f"debiased_cka/{layer}"] == pytest.approx(ah.cka(kernel, y, debiased=True), abs=1e-5)


def test_few_samples_raise_alignments_that_are_not_debiased(output: Path) -> None:
    rows = table(output)
    few, many = alignments(rows, "cka", 0, shuffled=True).mean(1)
    assert (few > many + 0.05).all()
    assert (few > alignments(rows, "debiased_cka", 0, shuffled=True).mean(1)[0] + 0.1).all()


def test_what_a_run_prints_and_leaves(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"layer\d before training, mean ± standard deviation over the subsets:\n", printed)
    assert re.search(r"layer\d after training", printed)
    assert len(re.findall(r"\n +(?:12|40)(?: +-?0\.\d{4} ± 0\.\d{4}){4}\n", printed.replace("\n", "\n\n"))) == 4
    assert (tmp_path / "cka_bias.png").read_bytes().startswith(b"\x89PNG")
    assert table(tmp_path) == table(output)


def test_all_outputs(tmp_path: Path) -> None:
    assert STUDY.main([*TINY, "--outputs", "all", "--epochs", "1", "--output", str(tmp_path)]) == 0
    row = table(tmp_path)[0]
    digits = data.training_subset(data.load("digits"), 300, 0)
    chosen = np.random.default_rng([0, 0, 0]).permutation(300)[:12]
    kernel = ah.tangent_kernels(feedforward(64, 16, 2, 10, seed=0), digits.train_x[chosen])["layer1"]
    found = ah.cka(kernel, digits.train_y[chosen], centering="per_output", debiased=True)
    assert row["debiased_cka/layer1"] == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("subsets_done", [1, 7])
def test_killed_between_two_subsets_and_started_again(
    subsets_done: int, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends in the middle of a measurement, before and after training."""
    true, calls = ah.layerwise_alignment, []

    def ending(*arguments: object, **keywords: object) -> object:
        calls.append(1)
        if len(calls) == 2 * subsets_done + 1:
            raise KeyboardInterrupt
        return true(*arguments, **keywords)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ah, "layerwise_alignment", ending)
        STUDY.main([*TINY, "--output", str(tmp_path)])
    assert len(table(tmp_path)) == 2 * subsets_done
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    assert table(tmp_path) == table(output)


def test_an_interrupted_training_goes_on(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*TINY, "--output", str(tmp_path)]
    with studies.interrupted(monkeypatch, lambda trainer: trainer.iteration == 3):
        assert STUDY.main(command) == 128 + signal.SIGTERM
    assert STUDY.main(command) == 0
    assert table(tmp_path) == table(output)
