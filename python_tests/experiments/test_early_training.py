"""The study of early training: features and Hessians against dense ones, what it leaves, going on, refusals."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import studies
import torch

import ahkernels as ah
from experiments.common import data
from experiments.common.hessian import ParameterVector, centered_labels, loss_gradient
from experiments.common.models import INITIALISATIONS, feedforward
from experiments.common.training import Recipe, Trainer
from experiments.common.vision import resnet18
from experiments.early_training.__main__ import PRESETS, STUDY
from experiments.early_training.feature_changes import correlations, cosine, eigenvectors, evolution
from experiments.early_training.figure import CHANGES, moments

LAYERS = ["layer1", "layer2", "layer3"]
TINY = [
    *("--depth", "3", "--width", "16", "--epochs", "3", "--batch-size", "300", "--lr", "0.05", "--probe-size", "20"),
    *("--measurements", "4", "--eigenvectors", "5", "--moments", "0", "1"),
]


def results(output: Path) -> dict[str, bytes]:
    """Every table."""
    return {path.name: path.read_bytes() for path in sorted((output / "seed-0").glob("*.csv"))}


def dense(model: torch.nn.Module, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Psi v, [P], and H_v, [P, P], by torch.func."""
    theta = ParameterVector(model)
    names = [name for name, _ in model.named_parameters()]

    def total(vector: torch.Tensor) -> torch.Tensor:
        parts = dict(zip(names, theta.split(vector), strict=True))
        return (torch.func.functional_call(model, parts, (x,)) * v).sum()

    return torch.func.grad(total)(theta.get()), torch.func.hessian(total)(theta.get())


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that TINY leaves, which no test may change."""
    folder, state = tmp_path_factory.mktemp("tiny"), torch.get_rng_state()
    assert STUDY.main([*TINY, "--output", str(folder)]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    return folder


def trainer(lr: float, batch_size: int = 12, weight_decay: float = 0.0) -> Trainer:
    """A trainer of a tiny network on 12 random samples of 4 classes."""
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    recipe = Recipe(lr=lr, batch_size=batch_size, weight_decay=weight_decay, epochs=2)
    return Trainer(feedforward(5, 6, 3, 4, seed=0), x, torch.arange(12) % 4, recipe)


# ---- one measurement


def test_an_evolution_is_that_of_the_dense_hessians() -> None:
    """A full-batch step's change, over the learning rate, tends to the infinitesimal one."""
    of = trainer(lr=1e-6)
    found = evolution(of, of.x, of.y)
    model, x = of.model.double(), of.x.double()
    w, labels = loss_gradient(model(x), of.y), centered_labels(of.y, 4, torch.float64)
    along_loss, h_loss = dense(model, x, w)
    along_labels, h_labels = dense(model, x, labels)
    torch.testing.assert_close(found.predicted, -h_loss @ along_labels)
    torch.testing.assert_close(found.changes["infinitesimal"], -h_labels @ along_loss)
    torch.testing.assert_close(found.changes["full_batch"] / 1e-6, -h_labels @ along_loss, rtol=1e-4, atol=1e-7)
    pearson = np.corrcoef(w.detach().flatten(), labels.flatten())[0, 1]
    assert found.collinearity == pytest.approx(-pearson)
    row = correlations(found)
    assert row["infinitesimal_correlation"] == pytest.approx(cosine(h_labels @ along_loss, h_loss @ along_labels))
    assert row["full_batch_correlation"] == pytest.approx(row["infinitesimal_correlation"], abs=1e-5)
    assert 0.1 < row["infinitesimal_correlation"] < 0.999  # so that this test tells the Hessians apart


def test_the_step_is_the_one_that_training_takes() -> None:
    """With the whole set as minibatch the first is the full-batch step; a later one has momentum, too."""
    of = trainer(lr=0.01)
    found = evolution(of, of.x, of.y)
    torch.testing.assert_close(found.changes["step"], found.changes["full_batch"], rtol=1e-3, atol=1e-7)
    of = trainer(lr=0.01, batch_size=5, weight_decay=0.1)
    for _ in range(4):
        of.step()
    found = evolution(of, of.x, of.y)
    labels = centered_labels(of.y, 4, torch.float64)
    before, _ = dense(of.model.double(), of.x.double(), labels)
    of.model.float()
    of.step()
    after, _ = dense(of.model.double(), of.x.double(), labels)
    torch.testing.assert_close(found.changes["step"], after - before)
    assert not torch.allclose(found.changes["step"], found.changes["full_batch"], rtol=0.1)


def test_measuring_leaves_training_as_it_was() -> None:
    """The running statistics of batch normalisation stay, too."""
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = torch.nn.Sequential(resnet18(4, 0, width=0.02))
    of = Trainer(model, x, torch.arange(8) % 4, Recipe(lr=0.1, batch_size=4, epochs=2))
    of.step()
    state, random = of.state(), torch.get_rng_state()
    before = {name: value.clone() for name, value in state["model"].items()}
    buffers = [entry["momentum_buffer"].clone() for entry in state["optimizer"]["state"].values()]
    eigenvectors(evolution(of, x, of.y), 1, 2)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert of.iteration == 1
    for name, value in of.state()["model"].items():
        assert torch.equal(value, before[name])
    for buffer, entry in zip(buffers, of.state()["optimizer"]["state"].values(), strict=True):
        assert torch.equal(entry["momentum_buffer"], buffer)


def test_the_loss_gradient_points_against_the_labels_at_initialisation() -> None:
    """The network is wide, so that its outputs are alike for all inputs, and classes are balanced (appendix B.5.1)."""
    digits = data.load("digits")
    probe = data.stratified_subset(digits.train_y, 150, seed=0)
    x, y = digits.train_x[probe], digits.train_y[probe]
    of = Trainer(feedforward(64, 256, 8, 10, seed=0), x, y, Recipe())
    assert 0.9 < evolution(of, x, y).collinearity < 1


def test_xavier_keeps_the_loss_gradient_against_the_labels_for_longer() -> None:
    """Its first outputs are smaller by about 2^((L - 2) / 2), so that softmax stays uniform for longer."""
    digits = data.load("digits")
    x, y = digits.train_x, digits.train_y
    found = {}
    for name in INITIALISATIONS:
        of = Trainer(feedforward(64, 64, 6, 10, 0, initialisation=name), x, y, Recipe(batch_size=200))
        for _ in range(30):
            of.step()
        found[name] = evolution(of, x[:200], y[:200]).collinearity
    assert found["xavier"] > 0.99 > found["kaiming"]


# ---- results


def test_a_finished_run_leaves_metrics_eigenvectors_a_figure_and_tables(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again only draws them, with the same bytes."""
    tables, figure = results(output), (output / "early_training.png").read_bytes()
    monkeypatch.setattr(Trainer, "step", None)  # nothing is trained
    assert STUDY.main([*TINY, "--output", str(output)]) == 0
    printed, told = capsys.readouterr()
    assert "finished before" in told
    assert re.search(r" 15 +3\.000 +\d\.\d{4} +\d+\.\d%( +-?\d\.\d{4}){4}\n", printed)
    assert re.search(r"5 eigenvectors of H_w at iteration 5 \(epoch 1\): \|eigenvalue\| ", printed)
    assert len(re.findall(r"layer2( +-?\d\.\d{4}){5}\n", printed)) == 3
    assert f"figure: {output / 'early_training.png'}" in printed
    assert (output / "early_training.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "early_training.png").read_bytes() == figure
    assert sorted(tables) == ["eigenvectors.csv", "metrics.csv"]
    assert results(output) == tables
    rows = studies.numbers(output / "seed-0" / "metrics.csv")
    assert [row["iteration"] for row in rows] == [0, 1, 4, 5, 10, 15]  # the grid's, the moment's, one compared
    of_changes = [f"{name}_correlation{layer}" for name in CHANGES for layer in ("", *(f"/{of}" for of in LAYERS))]
    assert list(rows[0])[6:] == [*(f"cka/{layer}" for layer in LAYERS), "collinearity", *of_changes]


def test_rows_are_those_of_the_network_in_training(output: Path) -> None:
    """The last one that of the checkpoint, the first that of the seed; on the stratified probe."""
    digits = data.load("digits")
    probe = data.stratified_subset(digits.train_y, 20, seed=0)
    x, y = digits.train_x[probe], digits.train_y[probe]
    of = Trainer(feedforward(64, 16, 3, 10, seed=0), digits.train_x, digits.train_y, Recipe(0.05, batch_size=300))
    first, *_, last = studies.numbers(output / "seed-0" / "metrics.csv")
    for row, state in ((first, None), (last, torch.load(output / "seed-0" / "checkpoint.pt")["state"])):
        if state is not None:
            of.restore(state)
        found = correlations(evolution(of, x, y))
        assert {name: row[name] for name in found} == found
        report = ah.layerwise_alignment(of.model, x, y, precision="highest", centering="per_output")
        assert [row[f"cka/{layer}"] for layer in LAYERS] == report.cka.tolist()


def test_seeds_are_runs_of_their_own_and_the_first_has_the_eigenvectors(output: Path, tmp_path: Path) -> None:
    assert STUDY.main([*TINY, "--seeds", "0", "1", "--output", str(tmp_path)]) == 0
    assert results(tmp_path) == results(output)
    assert not (tmp_path / "seed-1" / "eigenvectors.csv").exists()
    of_seeds = [studies.numbers(tmp_path / f"seed-{seed}" / "metrics.csv")[-1]["collinearity"] for seed in (0, 1)]
    line = studies.numbers(tmp_path / "collinearity.csv")[-1]
    assert (line["seeds"], line["least"], line["greatest"]) == (2, min(of_seeds), max(of_seeds))


def test_eigenvectors_are_those_of_the_dense_hessian(output: Path) -> None:
    """The coordinates are along these eigenvectors, up to their signs."""
    digits = data.load("digits")
    probe = data.stratified_subset(digits.train_y, 20, seed=0)
    x, y = digits.train_x[probe].double(), digits.train_y[probe]
    model = feedforward(64, 16, 3, 10, seed=0).double()
    along_loss, hessian = dense(model, x, loss_gradient(model(x), y))
    along_labels, h_labels = dense(model, x, centered_labels(y, 10, torch.float64))
    values, vectors = np.linalg.eigh(hessian.numpy())
    order = np.argsort(-np.abs(values))[:5]
    energies = ParameterVector(model).inner_products(*[torch.from_numpy(vectors[:, order])] * 2)
    table = studies.numbers(output / "seed-0" / "eigenvectors.csv")
    assert [(row["iteration"], row["index"]) for row in table] == [(t, i) for t in (0, 5, 15) for i in range(1, 6)]
    np.testing.assert_allclose([row["eigenvalue"] for row in table[:5]], values[order], rtol=1e-4)
    for layer, expected in zip(LAYERS, energies, strict=True):
        np.testing.assert_allclose([row[f"energy/{layer}"] for row in table[:5]], expected, rtol=0.01)
    for name, change in (("predicted", hessian @ along_labels), ("infinitesimal", h_labels @ along_loss)):
        coordinates = (change / change.norm()).numpy() @ vectors[:, order]
        np.testing.assert_allclose([abs(row[f"coordinate/{name}"]) for row in table[:5]], abs(coordinates), atol=1e-3)


def test_energies_and_coordinates_are_shares(output: Path) -> None:
    rows = studies.numbers(output / "seed-0" / "metrics.csv")
    for moment in moments(rows, studies.numbers(output / "seed-0" / "eigenvectors.csv")):
        np.testing.assert_allclose(moment.energies.sum(axis=1), 1, atol=1e-5)
        assert moment.weighted_energies.sum() == pytest.approx(1, abs=1e-5)
        assert (np.diff(abs(moment.eigenvalues)) <= 0).all()
        for name in ("predicted", *CHANGES):
            assert 0 < np.square(moment.coordinates(name)).sum() < 1
        assert moment.correlation("predicted") == pytest.approx(1)


def test_without_eigenvectors_training_is_the_same(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, "--eigenvectors", "0", "--measurements", "7", "--checkpoint-every", "2"]
    assert STUDY.main([*command, "--output", str(tmp_path)]) == 0
    assert "eigenvectors of H_w" not in capsys.readouterr().out
    assert sorted(results(tmp_path)) == ["metrics.csv"]
    few = {row["iteration"]: row for row in studies.numbers(output / "seed-0" / "metrics.csv")}
    many = {row["iteration"]: row for row in studies.numbers(tmp_path / "seed-0" / "metrics.csv")}
    common = few.keys() & many.keys()
    assert {0, 1, 15} <= common
    assert {t: few[t] for t in common} == {t: many[t] for t in common}


@pytest.mark.filterwarnings("ignore:kernel of layer 'network.38' is constant")  # so narrow a VGG19 is, per output
@pytest.mark.parametrize(("name", "shown", "norms"), [("vgg19", 17, 0), ("resnet18", 21, 20)])
def test_image_networks(name: str, shown: int, norms: int, tmp_path: Path) -> None:
    """Norm layers have energy too; linear layers and convolutions are the ones with alignments, and in the figure."""
    base = [*("--batch-size", "16", "--train-size", "32", "--epochs", "1", "--probe-size", "8", "--measurements", "2")]
    base += [*("--width-factor", "0.02", "--eigenvectors", "2", "--moments", "1", "--output", str(tmp_path))]
    assert STUDY.main([*base, "--model", name]) == 0
    (moment,) = moments(
        studies.numbers(tmp_path / "seed-0" / "metrics.csv"),
        studies.numbers(tmp_path / "seed-0" / "eigenvectors.csv"),
    )
    assert len(moment.layers) == shown
    energies = [[v for key, v in line.items() if key.startswith("energy/")] for line in moment.table]
    assert len(energies[0]) == shown + norms
    np.testing.assert_allclose(np.sum(energies, axis=1), 1, atol=1e-5)
    assert (moment.energies.sum(axis=1) < 1).all() or not norms
    assert (tmp_path / "early_training.png").exists()


# ---- going on


@pytest.mark.parametrize("iteration", [5, 14])
def test_an_interrupted_run_goes_on_to_the_same_results(
    iteration: int,
    output: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signal may come during a measurement, which takes a step on a copy."""
    command = [*TINY, "--output", str(tmp_path)]
    with studies.interrupted(monkeypatch, lambda trainer: trainer.iteration == iteration):
        assert STUDY.main(command) == 128 + signal.SIGTERM
    assert "to go on:" in capsys.readouterr().err
    assert not (tmp_path / "early_training.png").exists()
    assert STUDY.main(command) == 0
    told = capsys.readouterr().err
    assert "iteration 0/" not in told
    assert "iteration 15/" in told
    assert results(tmp_path) == results(output)


def test_another_configuration_is_refused(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(output)
    assert STUDY.main([*TINY, "--moments", "0.5", "--output", str(output)]) == 2
    assert "moments: [0.0, 1.0] there, [0.5] asked for" in capsys.readouterr().err
    assert results(output) == before


def test_overwriting_discards_every_table(tmp_path: Path) -> None:
    command = [*TINY, "--epochs", "1", "--output", str(tmp_path)]
    assert STUDY.main(command) == 0
    assert STUDY.main([*command, "--eigenvectors", "0", "--overwrite"]) == 0
    assert sorted(results(tmp_path)) == ["metrics.csv"]


# ---- refusals


def test_divergence_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert STUDY.main([*TINY, "--lr", "1e18", "--measurements", "2", "--output", str(tmp_path / "inf")]) == 2
    message = capsys.readouterr().err
    assert "seed-0: training diverged" in message
    assert "smaller --lr" in message

    def dead(*arguments: int, **options: Any) -> torch.nn.Module:
        model = feedforward(*arguments, **options)
        torch.nn.init.zeros_(model.layer2.weight)
        return model

    monkeypatch.setattr("experiments.common.models.feedforward", dead)
    with pytest.warns(UserWarning, match="zero"):
        assert STUDY.main([*TINY, "--output", str(tmp_path / "dead")]) == 2
    assert "seed-0: no eigenvectors of the output Hessian at iteration 0" in capsys.readouterr().err


def test_presets_are_networks_and_data_of_the_paper() -> None:
    args = STUDY.parse(["--preset", "fashion-mnist", "--data-dir", "d", "--epochs", "1"])
    assert (args.model, args.depth, args.width, args.lr, args.epochs) == ("feedforward", 10, 256, 0.003, 1)
    assert (args.bias, args.initialisation, args.probe_size) == (True, "xavier", 500)
    assert args.output == Path("runs/early_training-fashion-mnist")
    outputs = [STUDY.parse(["--preset", name, "--data-dir", "d"]).output.name for name in PRESETS]
    assert outputs == [f"early_training-{name}" for name in PRESETS]
    args = STUDY.parse(["--preset", "cifar100-resnet18", "--data-dir", "d"])
    assert (args.dataset, args.model, args.width_factor, args.lr) == ("cifar100", "resnet18", 1.0, 0.01)
