"""The study of hyperparameters: cells, their end, processes that share a folder, stopping at any moment, refusals."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import studies
import torch
from scipy.stats import spearmanr

import ahkernels
from experiments.common import data
from experiments.common.models import feedforward
from experiments.common.store import RunStore
from experiments.common.training import Recipe, Trainer, evaluate, flushed_denormals
from experiments.hyperparameters.__main__ import STUDY, cells
from experiments.hyperparameters.cells import Cell, Result, print_table, rank_correlation

TINY = [
    *("--depth", "3", "--width", "16", "--probe-size", "20", "--epochs", "40", "--stop-loss", "0.3"),
    *("--batch-sizes", "150", "--sgd-lr", "0.05", "--adam-lr", "0.01"),
]
# Enough work for two processes; some cells diverge.
SHARED = [
    *("--depth", "3", "--width", "32", "--probe-size", "20", "--epochs", "5", "--stop-loss", "0.001"),
    *("--batch-sizes", "8", "64", "--sgd-lr", "0.01", "1e18", "--adam-lr", "0.01", "--checkpoint-every", "50"),
    *("--label-noise", "0.1", "--train-size", "600"),
]
SHARED_CELLS = sorted(
    f"{kind}-batch{size}-seed0" for kind in ("sgd-lr0.01", "sgd-lr1e+18", "adam-lr0.01") for size in (8, 64)
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The metrics that SHARED leaves where one process does everything without being disturbed."""
    output, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    assert STUDY.main([*SHARED, "--threads", "1", "--output", str(output)]) == 0
    torch.set_num_threads(threads)
    assert sorted(studies.metrics(output)) == SHARED_CELLS
    return studies.metrics(output)


# ---- results


def test_a_study_leaves_cells_a_figure_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    printed = capsys.readouterr().out
    assert re.search(r"sgd-lr0.05-batch150 +\d+ .*( [123] +0\.\d{4}){2} +at the loss", re.sub(" +", " ", printed))
    assert re.search(r"adam-lr0.01-batch150 +\d+ .*( [123] +0\.\d{4}){2} +at the loss", re.sub(" +", " ", printed))
    assert f"figure: {tmp_path / 'hyperparameters.png'}" in printed
    assert (tmp_path / "hyperparameters.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("adam-lr0.01-batch150-seed0", "hyperparameters.csv", "hyperparameters.png", "sgd-lr0.05-batch150-seed0")
    ]
    sgd, adam = (tmp_path / f"{name}-batch150-seed0" for name in ("sgd-lr0.05", "adam-lr0.01"))
    rows = studies.texts(adam / "metrics.csv")
    assert list(rows[0])[2:] == [
        *("train_loss", "test_loss", "train_accuracy", "test_accuracy", "averaged_loss", "loss_reached"),
        *(
            f"cka/{probe}/{centering}/layer{layer}"
            for probe in ("train", "test")
            for centering in ("per_output", "global")
            for layer in (1, 2, 3)
        ),
    ]
    first = dict(rows[0])
    assert first == studies.texts(sgd / "metrics.csv")[0]  # every cell begins with the same network
    (environment,) = json.loads((adam / "environment.json").read_text())["environments"]
    assert isinstance(environment["denormals_are_zero"], bool)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (sgd, adam)]
    assert {key for key in configs[0] if configs[0][key] != configs[1][key]} == {"optimizer", "lr"}
    assert configs[1]["stop_loss"] == 0.3
    assert configs[1]["label_noise"] == 0


def test_training_ends_where_the_averaged_loss_is_small_at_two_epoch_ends(tmp_path: Path) -> None:
    """The last row is the network then, measured by the library on the stratified probe."""
    STUDY.main([*TINY, "--optimizers", "adam", "--output", str(tmp_path)])
    digits = data.load("digits")
    recipe = Recipe(optimizer="adam", lr=0.01, batch_size=150, epochs=40, stop_loss=0.3)
    trainer = Trainer(feedforward(64, 16, 3, 10, seed=0), digits.train_x, digits.train_y, recipe)
    with flushed_denormals():
        while not trainer.loss_reached:
            trainer.step()
        both = {"precision": "highest", "centering": ("per_output", "global")}
        found = {
            probe: ahkernels.layerwise_alignment(trainer.model, *samples, **both)
            for probe, samples in data.probes(digits, 20, seed=0).items()
        }
    start, last = studies.numbers(tmp_path / "adam-lr0.01-batch150-seed0" / "metrics.csv")
    assert (start["iteration"], last["iteration"], last["loss_reached"]) == (0, trainer.iteration, 1)
    assert last["averaged_loss"] == trainer.averaged_loss < 0.3
    assert (last["test_loss"], last["test_accuracy"]) == evaluate(trainer.model, digits.test_x, digits.test_y)
    for probe, reports in found.items():
        for centering, report in reports.items():
            assert [last[f"cka/{probe}/{centering}/{layer}"] for layer in report.layers] == report.cka.tolist()
    (line,) = studies.texts(tmp_path / "hyperparameters.csv")
    for probe, reports in found.items():
        assert float(line[f"{probe}_global_cka"]) == reports["global"].cka.max()


def test_a_cell_has_the_mean_over_its_seeds(tmp_path: Path) -> None:
    command = [*TINY, "--optimizers", "sgd", "--epochs", "2", "--seeds", "0", "1", "--output", str(tmp_path)]
    assert STUDY.main(command) == 0
    runs = [studies.numbers(tmp_path / f"sgd-lr0.05-batch150-seed{seed}" / "metrics.csv")[-1] for seed in (0, 1)]
    assert runs[0]["test_loss"] != runs[1]["test_loss"]
    (line,) = studies.texts(tmp_path / "hyperparameters.csv")
    assert float(line["test_loss"]) == pytest.approx(sum(run["test_loss"] for run in runs) / 2)
    assert (line["seeds"], line["at_epoch_limit"]) == ("2", "2")


def test_label_noise_is_in_the_training_labels_only(tmp_path: Path) -> None:
    base = [*TINY, "--optimizers", "sgd", "--epochs", "1", "--train-size", "1000"]
    for name, fraction in (("clean", "0"), ("noisy", "0.5")):
        assert STUDY.main([*base, "--label-noise", fraction, "--output", str(tmp_path / name)]) == 0
    clean, noisy = (
        studies.texts(tmp_path / name / "sgd-lr0.05-batch150-seed0" / "metrics.csv")[0] for name in ("clean", "noisy")
    )
    assert noisy["test_loss"] == clean["test_loss"]
    noisy_set = data.with_label_noise(data.training_subset(data.load("digits"), 1000, 0), 0.5, 0)
    start = evaluate(feedforward(64, 16, 3, 10, seed=0), noisy_set.train_x, noisy_set.train_y)
    assert (float(noisy["train_loss"]), float(noisy["train_accuracy"])) == start
    assert noisy["train_loss"] != clean["train_loss"]
    config = json.loads((tmp_path / "noisy" / "sgd-lr0.05-batch150-seed0" / "config.json").read_text())
    assert (config["label_noise"], config["train_samples"]) == (0.5, 1000)


def test_a_cell_that_diverges_is_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--optimizers", "sgd", "--sgd-lr", "1e18", "0.001", "--epochs", "2", "--output", str(tmp_path)]
    assert STUDY.main(command) == 0
    first = capsys.readouterr()
    assert "sgd-lr1e+18-batch150-seed0: training diverged" in first.err
    assert re.search(r"sgd-lr1e\+18-batch150 +0\.\d+( +-){10} +diverged", first.out)
    assert re.search(r"sgd-lr0.001-batch150 +2 .* epoch limit", first.out)
    assert "rank correlation" not in first.out  # nothing to correlate
    rows = studies.texts(tmp_path / "sgd-lr1e+18-batch150-seed0" / "metrics.csv")
    assert [row["train_loss"] == "nan" for row in rows] == [False, True]
    figure = (tmp_path / "hyperparameters.png").read_bytes()
    assert STUDY.main(command) == 0  # and is not tried again
    again = capsys.readouterr()
    assert "finished before" in again.err
    assert again.out == first.out
    assert (tmp_path / "hyperparameters.png").read_bytes() == figure


@pytest.mark.filterwarnings("ignore:kernel of layer 'network.38' is constant")  # so narrow a VGG19 is, per output
def test_image_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [*("--optimizers", "sgd", "--sgd-lr", "0.01", "--batch-sizes", "16", "--train-size", "32", "--epochs", "1")]
    base += [*("--probe-size", "8", "--width-factor", "0.02")]
    for name, layers in (("vgg19", 17), ("resnet18", 21)):
        assert STUDY.main([*base, "--model", name, "--output", str(tmp_path / name)]) == 0
        rows = studies.texts(tmp_path / name / "sgd-lr0.01-batch16-seed0" / "metrics.csv")
        assert (
            sum(column.startswith("cka/train/global/network.") for column in rows[0]) == layers
        )  # convolutions and linear layers
        assert rows[0]["train_loss"] != rows[1]["train_loss"]
        config = json.loads((tmp_path / name / "sgd-lr0.01-batch16-seed0" / "config.json").read_text())
        assert (config["model"], config["width_factor"]) == (name, 0.02)
        assert "depth" not in config
    assert "epoch limit" in capsys.readouterr().out


def test_rank_correlation_is_spearmans() -> None:
    for a, b in (([1, 2, 3, 4], [0.1, 5, 7, 1e9]), ([1, 2, 3, 4], [1, 3, 2, 4]), ([1, 1, 2, 5, 5], [9, 3, 3, 3, 0])):
        assert rank_correlation(a, b).value == pytest.approx(spearmanr(a, b).statistic)
    assert str(rank_correlation([1, 2, 3], [4, 4, 4])) == "nan"
    assert str(rank_correlation([1, 2, 3, 4], [4, 5, 6, 7])) == "1.00"


def test_intervals_of_rank_correlations_cover_what_they_say() -> None:
    """Of pairs of normal numbers with a correlation of 0.6, whose ranks have 0.58."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        a, b = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=12).T
        found = rank_correlation(a.tolist(), b.tolist())
        covered += found.low <= 6 / math.pi * math.asin(0.3) <= found.high
    assert 930 <= covered <= 970


def test_fewer_than_four_cells_have_no_interval() -> None:
    assert str(rank_correlation([1, 2, 3], [4, 6, 5])) == "0.50"


def test_the_table_correlates_cells_that_reached_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    def ended(optimizer: str, lr: float, test_loss: float, peak: float, reached: bool = True) -> Result:
        last = {"iteration": 5.0, "epoch": 1.0, "train_loss": 0.1, "test_loss": test_loss, "loss_reached": reached}
        last |= {"train_accuracy": 0.9, "test_accuracy": 1 - test_loss}
        for probe in ("train", "test"):
            for centering in ("per_output", "global"):
                last |= {f"cka/{probe}/{centering}/layer1": peak, f"cka/{probe}/{centering}/layer2": 0.01}
        return Result(Cell(optimizer, lr, 8), [[dict.fromkeys(last, 0.0), last]])

    sgd = [ended("sgd", i, 0.5 + i / 10, 0.4 - i / 10) for i in range(3)]
    adam = [ended("adam", i, 0.2 + i / 10, 0.4 + i / 10) for i in range(3)]
    print_table([*sgd, ended("sgd", 9, 0.1, 0.02, reached=False), *adam], test_samples=100)
    printed = capsys.readouterr().out
    assert printed.count("sgd (3 cells): -1.00 with the test loss, -1.00 with the gap, 1.00 with the") == 2
    assert "adam (3 cells): 1.00 with the test loss, 1.00 with the gap, -1.00 with the test accuracy" in printed
    assert "all (6 cells): -0.70 (-0.97 to 0.38) with the test loss" in printed
    assert printed.count("over all trained cells, whose training losses differ") == 2
    assert "all (7 cells): " in printed
    assert re.search(r"sgd-lr9-batch8 .* 1 +0\.0200  1 of 1 at the epoch limit", printed)


# ---- processes that share a folder


def test_a_cell_that_another_process_has_is_left_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--output", str(tmp_path)]
    STUDY.main([*TINY, "--output", str(tmp_path / "expected")])
    expected = studies.metrics(tmp_path / "expected")
    STUDY.main([*command, "--optimizers", "sgd"])  # leaves a configuration to compare with
    config = json.loads((tmp_path / "sgd-lr0.05-batch150-seed0" / "config.json").read_text())
    capsys.readouterr()
    taken = {**config, "optimizer": "adam", "lr": 0.01}
    with RunStore(tmp_path / "adam-lr0.01-batch150-seed0", taken, {}):
        assert STUDY.main(command) == 0
        told = capsys.readouterr()
        assert "other processes have adam-lr0.01-batch150-seed0" in told.err
        assert re.search(r"adam-lr0.01-batch150( +-){11} +not begun", told.out)
        assert STUDY.main([*command, "--overwrite"]) == 2
        assert "another process writes here" in capsys.readouterr().err
    assert (tmp_path / "hyperparameters.png").exists()
    assert STUDY.main(command) == 0
    assert "finished before" not in capsys.readouterr().err
    assert studies.metrics(tmp_path) == expected


@pytest.mark.slow
def test_two_processes_train_every_cell_once(tmp_path: Path, alone: dict[str, bytes]) -> None:
    workers = [studies.start("hyperparameters", *SHARED, "--output", str(tmp_path)) for _ in range(2)]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    begun = re.findall(r"^(\S+): iteration 0/", "".join(errors), re.MULTILINE)
    assert sorted(begun) == SHARED_CELLS
    assert studies.metrics(tmp_path) == alone
    assert (tmp_path / "hyperparameters.png").exists()


def checkpointed(process: subprocess.Popen[str], cell: Path, after: int) -> None:
    """Wait for a checkpoint of a cell after more than some iterations."""
    path = cell / "checkpoint.pt"
    deadline = time.monotonic() + 60
    while not (path.exists() and torch.load(path, weights_only=True)["state"]["iteration"] > after):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_process_leaves_its_cell_to_the_next(
    tmp_path: Path, alone: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SHARED, "--optimizers", "adam"]  # whose state is the larger one
    first, second = tmp_path / "adam-lr0.01-batch8-seed0", tmp_path / "adam-lr0.01-batch64-seed0"
    with studies.start("hyperparameters", *command, "--output", str(tmp_path)) as process:
        checkpointed(process, first, after=60)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(studies.texts(first / "metrics.csv")) == 1
    assert not second.exists()
    assert STUDY.main([*command, "--threads", "1", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert f"{first.name}: iteration 0/" not in told  # it went on
    assert f"{second.name}: iteration 0/" in told
    assert studies.metrics(tmp_path) == {name: content for name, content in alone.items() if name.startswith("adam")}


def test_an_interrupted_process_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TINY, "--epochs", "2", "--output", str(tmp_path / "out")]
    assert STUDY.main([*TINY, "--epochs", "2", "--output", str(tmp_path / "expected")]) == 0
    capsys.readouterr()
    with studies.interrupted(monkeypatch, lambda trainer: trainer.iteration == 3):
        assert STUDY.main(command) == 128 + signal.SIGTERM
    told = capsys.readouterr().err
    assert "sgd-lr0.05-batch150-seed0: stopped and saved" in told
    assert "to go on:" in told
    assert STUDY.main(command) == 0
    assert studies.metrics(tmp_path / "out") == studies.metrics(tmp_path / "expected")


# ---- refusals


def test_another_configuration_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--epochs", "1", "--output", str(tmp_path)]
    STUDY.main([*TINY, *base, "--optimizers", "adam"])
    other = [*TINY, *base, "--width", "17"]
    assert STUDY.main(other) == 2
    message = capsys.readouterr().err
    assert "width: 16 there, 17 asked for" in message
    assert "--overwrite" in message
    assert not (tmp_path / "sgd-lr0.05-batch150-seed0").exists()
    assert STUDY.main([*other, "--overwrite"]) == 0
    assert json.loads((tmp_path / "adam-lr0.01-batch150-seed0" / "config.json").read_text())["width"] == 17


def test_presets_are_the_papers_grids() -> None:
    args = STUDY.parse(["--preset", "cifar10-vgg19", "--data-dir", "d", "--width-factor", "0.5"])
    assert (args.model, args.width_factor, args.stop_loss, args.epochs) == ("vgg19", 0.5, 0.1, 500)
    assert args.seeds == [0, 1, 2]
    assert len(cells(args)) == 4 * 4 + 3 * 4
    args = STUDY.parse(["--preset", "cifar100-vgg19", "--data-dir", "d"])
    assert (args.dataset, [cell.lr for cell in cells(args)]) == ("cifar100", [0.001, 0.005, 0.01])
