"""The study of depth: fits, presets, runs that processes share, and pictures."""

from __future__ import annotations

import json
import math
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import studies
import torch
from scipy import stats

import ahkernels
from experiments.common import data
from experiments.common.models import feedforward
from experiments.common.training import Recipe, Trainer, evaluate, flushed_denormals
from experiments.depth_scaling.__main__ import STUDY
from experiments.depth_scaling.line_fit import AVERAGED, SINGLE, line
from experiments.depth_scaling.networks import Variant, networks

RELU = ahkernels.signal_propagation.Network("relu")
TINY = [
    *("--depths", "2", "3", "5", "--width", "12", "--lrs", "0.05", "0.04", "0.03", "--epochs", "2", "4", "4"),
    *("--epoch-fraction", "0.5", "--train-size", "300", "--probe-size", "20", "--measurements", "4"),
]
NAMES = ["depth2-lr0.05-batch32-seed0", "depth3-lr0.04-batch32-seed0", "depth5-lr0.03-batch32-seed0"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that TINY leaves where one process does everything without being disturbed."""
    output = tmp_path_factory.mktemp("alone")
    assert STUDY.main([*TINY, "--output", str(output)]) == 0
    return output


# ---- results


def test_a_study_leaves_runs_tables_and_figures(alone: Path) -> None:
    figures = [f"{name}-batch32.png" for name in ("depth_scaling-train", "depth_scaling-test", "slopes")]
    tables = [f"{name}.csv" for name in ("depth_scaling", "averaged_curves", "fits")]
    assert sorted(path.name for path in alone.iterdir()) == sorted([*NAMES, *figures, *tables])
    for figure in figures:
        assert (alone / figure).read_bytes().startswith(b"\x89PNG")
    view = {"moment": "end", "probe": "test", "centering": "global"}
    lines, averaged, fitted = (
        [line for line in studies.texts(alone / table) if view.items() <= line.items()] for table in tables
    )
    assert [int(line["depth"]) for line in lines] == [2, 3, 5]
    assert [float(line["epoch"]) for line in lines] == [1, 2, 2]
    for name, of_depth, mean in zip(NAMES, lines, averaged, strict=True):
        last = {key: float(value) for key, value in studies.texts(alone / name / "metrics.csv")[-1].items()}
        of_layers = [last[f"cka/test/global/layer{layer + 1}"] for layer in range(int(of_depth["depth"]))]
        assert float(of_depth["cka"]) == max(of_layers)
        assert int(of_depth["peak"]) == 1 + of_layers.index(max(of_layers))
        assert int(of_depth["near_peak"]) == sum(value >= 0.98 * max(of_layers) for value in of_layers)
        assert {mean[key] == of_depth[key] for key in ("peak", "cka", "near_peak")} == {True}
    x = {"depth": [2, 3, 5], "equilibrium": ahkernels.signal_propagation.equilibrium(RELU, [2, 3, 5])}
    assert [(fit["against"], fit["peaks"]) for fit in fitted] == [(of, kind) for of in x for kind in (SINGLE, AVERAGED)]
    for fit in fitted:
        expected = stats.linregress(np.log(x[fit["against"]]), np.log([int(line["peak"]) for line in lines]))
        assert float(fit["slope"]) == pytest.approx(expected.slope, abs=1e-12)
        assert float(fit["low"]) <= float(fit["slope"]) <= float(fit["high"])


def test_a_run_is_the_papers_network_trained_with_its_depths_recipe(alone: Path) -> None:
    digits = data.training_subset(data.load("digits"), 300, 0)
    trainer = Trainer(
        feedforward(64, 12, 3, 10, seed=0), digits.train_x, digits.train_y, Recipe(lr=0.04, batch_size=32, epochs=2)
    )
    seen = data.stratified_subset(digits.train_y, 20, seed=0)
    unseen = data.stratified_subset(digits.test_y, 20, seed=0)
    probes = {
        "train": (digits.train_x[seen], digits.train_y[seen]),
        "test": (digits.test_x[unseen], digits.test_y[unseen]),
    }
    with flushed_denormals():
        trainer.run([], lambda: None)
        found = {
            f"cka/{part}/{centering}": report
            for part, probe in probes.items()
            for centering, report in ahkernels.layerwise_alignment(
                trainer.model, *probe, centering=("per_output", "global"), precision="highest"
            ).items()
        }
    rows = studies.texts(alone / NAMES[1] / "metrics.csv")
    assert [float(row["iteration"]) for row in rows] == [0, 1, 4, 20]
    assert (float(rows[-1]["test_loss"]), float(rows[-1]["test_accuracy"])) == evaluate(
        trainer.model, digits.test_x, digits.test_y
    )
    for name, report in found.items():
        assert [float(rows[-1][f"{name}/{layer}"]) for layer in report.layers] == report.cka.tolist()


def curves(peaks: dict[int, list[float]]) -> dict[int, np.ndarray]:
    """For each depth, a curve with its peak at each of these layers."""
    return {
        depth: np.array([[-abs(math.log(layer / at)) for layer in range(1, depth + 1)] for at in layers])
        for depth, layers in peaks.items()
    }


def test_a_line_finds_a_known_power() -> None:
    depths = {depth: float(depth) for depth in (64, 729, 4096, 15625)}  # sixth powers
    found = line(curves({depth: [depth ** (2 / 3)] for depth in depths}), depths, SINGLE)
    assert found is not None
    assert found.slope == pytest.approx(2 / 3, abs=1e-9)
    assert found.constant_at(2 / 3) == pytest.approx(found.constant) == pytest.approx(1, abs=1e-9)
    assert found.residual_at(found.slope) < 1e-9 < found.residual_at(0.6)
    assert found.interval == pytest.approx((2 / 3, 2 / 3))
    assert [float(edge[0]) for edge in found.band(np.array([100.0]))] == pytest.approx([100 ** (2 / 3)] * 2)
    assert line(curves({4: [2], 9: [3], 1: [1]}), {4: 4.0, 9: 9.0, 1: math.nan}, SINGLE) is None


def test_a_depth_is_one_point_however_its_networks_are_put_together() -> None:
    peaks = {8: [2, 8, 4], 16: [4], 32: [8]}
    x = {depth: float(depth) for depth in peaks}
    single, averaged = (line(curves(peaks), x, of) for of in (SINGLE, AVERAGED))
    assert single is not None and averaged is not None
    assert np.exp(single.log_layers) == pytest.approx([4, 4, 8])
    # The mean of the three curves is flat between the middle peak and its neighbours, and greatest at the middle one.
    assert np.exp(averaged.log_layers) == pytest.approx([4, 4, 8])
    assert np.ptp(single.resampled[0]) > np.ptp(line(curves({8: [4], 16: [4], 32: [8]}), x, SINGLE).resampled[0])


@pytest.mark.parametrize("of", [SINGLE, AVERAGED])
def test_the_interval_of_a_slope_covers_the_truth(of: str) -> None:
    seeds = {10: 5, 20: 5, 30: 5, 40: 5, 50: 3, 60: 3, 70: 1, 80: 1, 90: 1, 100: 1}
    x = {depth: float(depth) for depth in seeds}
    generator, covered, trials = np.random.default_rng(0), 0, 40
    for _ in range(trials):
        scattered = {d: list(1.5 * d**0.6 * np.exp(0.2 * generator.standard_normal(k))) for d, k in seeds.items()}
        found = line(curves(scattered), x, of)
        assert found is not None
        covered += found.interval[0] <= 0.6 <= found.interval[1]
    assert covered >= 0.85 * trials


def test_networks_that_end_at_their_epoch_limit_are_marked(tmp_path: Path) -> None:
    command = [*TINY, "--epochs", "2", "40", "40", "--stop-loss", "0.9", "--epoch-fraction", "1", "--output"]
    assert STUDY.main([*command, str(tmp_path)]) == 0
    lines = {line["depth"]: line for line in studies.texts(tmp_path / "depth_scaling.csv") if line["moment"] == "end"}
    assert {depth: line["at_epoch_limit"] for depth, line in lines.items()} == {"2": "1", "3": "0", "5": "0"}
    assert float(lines["2"]["epoch"]) == 2 < float(lines["3"]["epoch"]) < 40
    assert {fit["at_epoch_limit"] for fit in studies.texts(tmp_path / "fits.csv")} == {"1"}


def test_depths_may_have_fewer_seeds(tmp_path: Path) -> None:
    command = [*TINY, "--seeds", "0", "1", "--seed-counts", "2", "1", "1", "--epoch-fraction", "0.25"]
    assert STUDY.main([*command, "--output", str(tmp_path)]) == 0
    assert {(fit["networks"], fit["depths"]) for fit in studies.texts(tmp_path / "fits.csv")} == {("4", "3")}


def test_a_run_that_diverges_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, "--lrs", "0.05", "0.04", "1e18", "--output", str(tmp_path)]
    assert STUDY.main(command) == 0
    told = capsys.readouterr()
    assert "depth5-lr1e+18-batch32-seed0: training diverged" in told.err
    assert "interval" not in told.out  # two depths are too few
    assert not list(tmp_path.glob("slopes*"))
    assert {line["depth"] for line in studies.texts(tmp_path / "depth_scaling.csv")} == {"2", "3"}
    assert STUDY.main(command) == 0
    assert "finished before" in capsys.readouterr().err


# ---- presets


@pytest.mark.parametrize(
    ("preset", "width", "depth", "lr", "epochs"),
    [
        *[("fashion-mnist", 100, 10, 0.003, 100), ("fashion-mnist", 100, 70, 0.0003, 200)],
        *[("mnist", 100, 90, 0.0002, 300), ("mnist", 100, 40, 0.002, 100)],
        *[("cifar10", 256, 100, 0.0001, 700), ("cifar10", 256, 30, 0.003, 150)],
    ],
)
def test_presets_are_the_papers_tables(preset: str, width: int, depth: int, lr: float, epochs: int) -> None:
    args = STUDY.parse(["--preset", preset, "--data-dir", "d"])
    assert (args.dataset, args.width) == (preset, width)
    of_depth = [one for one in networks(args) if one.depth == depth]
    assert {(one.epochs, one.lr, one.variant.batch_size) for one in of_depth} == {(epochs, lr, 200)}
    assert sorted(one.seed for one in of_depth) == list(range(5 if depth <= 40 else 3 if depth <= 60 else 1))
    assert (args.bias, args.initialisation, args.weight_decay) == (True, "kaiming", 5e-4)
    assert (args.stop_loss, args.probe_size, args.augment) == (0.1, 200, preset == "cifar10")


def test_options_override_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    args = STUDY.parse(["--preset", "mnist", "--data-dir", "d", "--width", "7", "--variants", "0.5:64"])
    assert (args.dataset, args.width, args.variants) == ("mnist", 7, [Variant(0.5, 64)])
    with pytest.raises(SystemExit):
        STUDY.parse(["--preset", "mnist", "--help"])
    assert "(default: 100)" in " ".join(capsys.readouterr().out.split())


# ---- interruptions, and processes that share a folder


def test_an_interrupted_study_ends_with_the_same_metrics(
    tmp_path: Path, alone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TINY, "--output", str(tmp_path)]
    with studies.interrupted(monkeypatch, lambda trainer: trainer.iteration == 7):
        assert STUDY.main(command) == 128 + signal.SIGTERM
    assert re.search(r"depth5-\S+: stopped and saved", capsys.readouterr().err)
    assert STUDY.main(command) == 0
    assert studies.metrics(tmp_path) == studies.metrics(alone)
    for name in ("depth_scaling.csv", "fits.csv", "depth_scaling-train-batch32.png"):
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.slow
def test_two_processes_do_every_run_once(tmp_path: Path, alone: Path) -> None:
    workers = [studies.start("depth_scaling", *TINY, "--output", str(tmp_path)) for _ in range(2)]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    assert sorted(re.findall(r"^(\S+): iteration 0/", "".join(errors), re.MULTILINE)) == sorted(NAMES)
    assert studies.metrics(tmp_path) == studies.metrics(alone)


# ---- refusals


def test_another_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--depths", "2", "--lrs", "0.05", "--epochs", "2", "--output", str(tmp_path)]) == 0
    assert STUDY.main([*TINY, "--width", "13", "--output", str(tmp_path)]) == 2
    assert "width: 12 there, 13 asked for" in capsys.readouterr().err
    assert not (tmp_path / NAMES[2]).exists()
    assert json.loads((tmp_path / NAMES[0] / "config.json").read_text())["width"] == 12
    assert not math.isnan(float(studies.texts(tmp_path / NAMES[0] / "metrics.csv")[-1]["train_loss"]))
    assert torch.get_num_threads() == 1
