"""The study from its command line: results, resuming after any kind of stop, and what it refuses."""

from __future__ import annotations

import gzip
import json
import math
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import studies
import torch

import ahkernels
from experiments.alignment_hierarchy.__main__ import STUDY
from experiments.alignment_hierarchy.null_level import SHUFFLES, NullLevel
from experiments.common import data
from experiments.common.measuring import authors_grid
from experiments.common.models import feedforward

OF = [f"{part}/{centering}" for part in ("train", "test") for centering in ("per_output", "global")]
TINY = [
    *("--depth", "3", "--width", "16", "--epochs", "3", "--batch-size", "300", "--lr", "0.05"),
    *("--probe-size", "20", "--measurements", "4"),
]


# ---- results


def test_a_run_leaves_metrics_figures_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--seeds", "0", "4", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "mean of 2 seeds" in printed
    assert re.search(r"layer3 +\*?0\.\d{4} +\*?0\.\d{4}", printed)
    assert "train/per output" in printed and "test/global" in printed
    for part in ("", "-test"):
        path = tmp_path / f"alignment_hierarchy{part}.png"
        assert f"figure: {path}" in printed
        assert path.read_bytes().startswith(b"\x89PNG")

    rows = {seed: studies.texts(tmp_path / f"seed-{seed}" / "metrics.csv") for seed in (0, 4)}
    assert [row["iteration"] for row in rows[0]] == ["0", "1", "4", "15"]
    assert [float(row["epoch"]) for row in rows[0]] == [0, 0.2, 0.8, 3]
    assert float(rows[0][-1]["train_loss"]) < float(rows[0][0]["train_loss"])
    columns = [
        *(f"{kind}/{of}" for kind in ("cka", "null", "null_least", "null_greatest") for of in OF),
        *("forward_cka", "backward_cka"),
    ]
    columns = [f"{column}/layer{i}" for column in columns for i in (1, 2, 3)]
    assert set(columns) == set(list(rows[0][0])[6:])
    *known, last_backward = columns  # per output nothing is left of the last layer's backward Gram
    assert all(-1e-6 < float(row[column]) < 1 + 1e-6 for row in rows[0] for column in known)
    assert all(row[last_backward] == "nan" for row in rows[0])
    first, other = rows[0][0], rows[4][0]
    assert first["cka/train/global/layer1"] != other["cka/train/global/layer1"]
    assert len({first[f"cka/{of}/layer1"] for of in OF}) == 4

    config = json.loads((tmp_path / "seed-4" / "config.json").read_text())
    assert (config["seed"], config["depth"], config["momentum"], config["weight_decay"]) == (4, 3, 0.9, 5e-4)
    (environment,) = json.loads((tmp_path / "seed-4" / "environment.json").read_text())["environments"]
    assert environment["torch"] == torch.__version__

    last = {line["moment"]: line for line in studies.texts(tmp_path / "accuracies.csv")}["at the end"]
    accuracy = np.mean([float(of_seed[-1]["test_accuracy"]) for of_seed in rows.values()])
    assert float(last["test_accuracy"]) == pytest.approx(accuracy)
    assert float(last["binomial_error"]) == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 360))
    peaks = [line for line in studies.texts(tmp_path / "peaks.csv") if line["moment"] == "at the end"]
    assert [f"{line['probe']}/{line['centering']}" for line in peaks] == list(OF)
    for line in peaks:
        of = f"cka/{line['probe']}/{line['centering']}"
        curves = np.array([[float(of_seed[-1][f"{of}/layer{i}"]) for i in (1, 2, 3)] for of_seed in rows.values()])
        assert int(line["peak"]) == curves.mean(0).argmax() + 1
        assert float(line["cka"]) == pytest.approx(curves.mean(0).max())
        assert line["peaks_of_seeds"] == " ".join(str(one.argmax() + 1) for one in curves)


def test_the_last_row_is_the_final_network(tmp_path: Path) -> None:
    """The file holds the library's alignments of the checkpointed network on the stratified probes."""
    STUDY.main([*TINY, "--output", str(tmp_path)])
    model = feedforward(64, 16, 3, 10, seed=9)
    model.load_state_dict(torch.load(tmp_path / "seed-0" / "checkpoint.pt", weights_only=True)["state"]["model"])
    last = studies.texts(tmp_path / "seed-0" / "metrics.csv")[-1]
    for part, (x, y) in data.probes(data.load("digits"), 20, seed=0).items():
        found = ahkernels.layerwise_alignment(model, x, y, centering=("per_output", "global"), precision="highest")
        for centering, report in found.items():
            of = f"{part}/{centering}"
            assert [float(last[f"cka/{of}/{layer}"]) for layer in report.layers] == report.cka.tolist()


def test_the_level_of_chance_is_the_mean_over_all_shuffles() -> None:
    """Shuffled labels v have E[v v^T] = (I - 1 1^T / n) (x) S n / (n - 1) with their covariance S."""
    digits = data.load("digits")
    x, y = data.probe(digits, 40, seed=0)
    y = y.clamp(max=6)  # a class of its own size
    model = feedforward(64, 16, 3, 10, seed=0, bias=True)
    found = ahkernels.layerwise_alignment(model, x, y, centering=("per_output", "global"), precision="highest")
    null = NullLevel((x, y), 10, "highest")
    values = null.alignments(model, found)
    labels = torch.nn.functional.one_hot(y, 10).double()
    for centering, report in found.items():
        targets = labels - (labels.mean(0) if centering == "per_output" else labels.mean())
        means = targets.mean(0)
        covariance = (targets - means).T @ (targets - means) / 39
        expected = torch.kron(torch.eye(40) - 1 / 40, covariance) + torch.outer(means.repeat(40), means.repeat(40))
        for layer, of_layer in zip(report.layers, values[centering], strict=True):
            kernel = ahkernels.tangent_kernels(model, x, layers=[layer])[layer].to_dense()
            exact = (kernel * expected).sum() / (
                targets.square().sum() * report.centered_norm[report.layers.index(layer)]
            )
            assert of_layer.shape == (SHUFFLES,)
            assert abs(of_layer.mean() - exact) < 4 * of_layer.std() / math.sqrt(SHUFFLES)
            assert of_layer.mean() < report[layer]
    again = NullLevel((x, y), 10, "highest").alignments(model, found)
    assert all(torch.equal(again[centering], values[centering]) for centering in values)


def test_a_study_may_measure_where_the_authors_do(tmp_path: Path) -> None:
    assert authors_grid(52) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 52]
    assert authors_grid(110) == [*range(0, 51, 5), 60, 70, 80, 90, 105, 110]
    STUDY.main([*TINY, "--iterations", "authors", "--output", str(tmp_path)])
    assert [row["iteration"] for row in studies.texts(tmp_path / "seed-0" / "metrics.csv")] == ["0", "5", "10", "15"]


def test_measuring_more_often_does_not_change_training(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    STUDY.main([*TINY, "--output", str(tmp_path / "few")])
    STUDY.main([*TINY, "--measurements", "9", "--checkpoint-every", "2", "--output", str(tmp_path / "many")])
    few, many = (studies.texts(tmp_path / name / "seed-0" / "metrics.csv") for name in ("few", "many"))
    assert (len(few), len(many)) == (4, 9)
    assert few[-1] == many[-1]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_finished_run_is_only_drawn_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--output", str(tmp_path)]
    STUDY.main(command)
    first = capsys.readouterr().out
    checkpoint = tmp_path / "seed-0" / "checkpoint.pt"
    before = checkpoint.stat().st_mtime_ns
    (tmp_path / "alignment_hierarchy.png").unlink()
    assert STUDY.main(command) == 0
    again = capsys.readouterr()
    assert "finished before" in again.err
    assert again.out == first
    assert checkpoint.stat().st_mtime_ns == before
    assert (tmp_path / "alignment_hierarchy.png").exists()


def test_an_undefined_alignment_is_a_gap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = ahkernels.AlignmentTracker.update

    def with_gap(tracker: ahkernels.AlignmentTracker, step: int) -> Any:
        gap = torch.tensor([1])
        measurement = true(tracker, step)
        reports = {}
        for centering, report in measurement.reports.items():
            cka = report.cka.clone().index_fill_(0, gap, math.nan)
            reports[centering] = replace(report, statistics=report.statistics | {"cka": cka})
        return replace(measurement, reports=reports)

    monkeypatch.setattr(ahkernels.AlignmentTracker, "update", with_gap)
    assert STUDY.main([*TINY, "--seeds", "0", "1", "--output", str(tmp_path)]) == 0
    assert re.search(r"layer2 +nan", capsys.readouterr().out)
    assert studies.texts(tmp_path / "seed-0" / "metrics.csv")[0]["cka/train/per_output/layer2"] == "nan"


# ---- stopping and going on


def start(output: Path) -> subprocess.Popen[str]:
    """The script in a process of its own, on more epochs."""
    more = ("--epochs", "60", "--measurements", "12", "--checkpoint-every", "7")
    return studies.start("alignment_hierarchy", *TINY, *more, "--output", str(output))


def stopped(output: Path, after: int, number: signal.Signals) -> tuple[int, str]:
    """Start, and send a signal once the measurement at iteration ``after`` is reported."""
    with start(output) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if f"iteration {after}/" in line:
                process.send_signal(number)
                break
        lines += process.stderr.readlines()
    return process.returncode, "".join(lines)


@pytest.mark.slow
def test_stopped_runs_end_as_uninterrupted_ones(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with start(whole) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors

    status, errors = stopped(parts, after=3, number=signal.SIGKILL)
    assert status == -signal.SIGKILL, errors
    killed = studies.texts(parts / "seed-0" / "metrics.csv")
    status, errors = stopped(parts, after=29, number=signal.SIGINT)
    assert status == 128 + signal.SIGINT, errors
    assert "seed-0: stopped and saved in" in errors
    assert "to go on:\n  python -m experiments.alignment_hierarchy --depth 3 " in errors
    assert "Traceback" not in errors
    assert not (parts / "alignment_hierarchy.png").exists()
    with start(parts) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "iteration 0/" not in errors  # it did go on, not start again

    expected = (whole / "seed-0" / "metrics.csv").read_bytes()
    assert killed == studies.texts(whole / "seed-0" / "metrics.csv")[: len(killed)]
    assert len(killed) < len(studies.texts(whole / "seed-0" / "metrics.csv"))
    assert (parts / "seed-0" / "metrics.csv").read_bytes() == expected
    states = [torch.load(run / "seed-0" / "checkpoint.pt", weights_only=True)["state"] for run in (whole, parts)]
    assert all(torch.equal(states[0]["model"][name], value) for name, value in states[1]["model"].items())
    momenta = [[entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()] for state in states]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))


def test_another_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--output", str(tmp_path)]
    STUDY.main(command)
    metrics = (tmp_path / "seed-0" / "metrics.csv").read_bytes()
    assert STUDY.main([*command, "--width", "17"]) == 2
    message = capsys.readouterr().err
    assert "width: 16 there, 17 asked for" in message
    assert "--overwrite" in message
    assert (tmp_path / "seed-0" / "metrics.csv").read_bytes() == metrics
    assert STUDY.main([*command, "--width", "17", "--overwrite"]) == 0
    assert (tmp_path / "seed-0" / "metrics.csv").read_bytes() != metrics


# ---- refusals


def test_presets_are_the_papers_setting() -> None:
    args = STUDY.parse(["--preset", "kmnist", "--data-dir", "d", "--epochs", "3"])
    assert (args.dataset, args.depth, args.width, args.lr, args.epochs) == ("kmnist", 10, 256, 0.003, 3)
    assert (args.batch_size, args.bias, args.weight_decay, args.probe_size) == (200, True, 5e-4, 200)
    assert (args.initialisation, args.iterations, args.augment) == ("kaiming", "authors", False)
    args = STUDY.parse(["--preset", "cifar10-depth20", "--data-dir", "d"])
    assert (args.dataset, args.depth, args.lr, args.augment) == ("cifar10", 20, 0.003, True)


def test_mistakes_only_the_data_show_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "out")]
    assert STUDY.main([*TINY, *output, "--probe-size", "1438"]) == 2
    assert "--probe-size: expected at most 1437" in capsys.readouterr().err
    assert STUDY.main([*TINY, *output, "--dataset", "kmnist", "--data-dir", str(tmp_path)]) == 2
    assert "train-images-idx3-ubyte.gz: no such file" in capsys.readouterr().err
    (tmp_path / "kmnist").mkdir()
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (tmp_path / "kmnist" / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(b"junk"))
    assert STUDY.main([*TINY, *output, "--dataset", "kmnist", "--data-dir", str(tmp_path)]) == 2
    assert "magic number" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # nothing is begun before the data are known to be good


def test_divergence_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--lr", "1e18", "--output", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "seed-0: training diverged" in message
    assert "smaller --lr" in message
    assert studies.texts(tmp_path / "seed-0" / "metrics.csv")  # what was measured before is kept
