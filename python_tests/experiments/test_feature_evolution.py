"""The study of feature evolution: schemes and moments against dense matrices, one step, going on, refusals."""

from __future__ import annotations

import itertools
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import studies
import torch
from torch import Tensor

import ahkernels as ah
from experiments.common import data
from experiments.common.hessian import OutputHessian, ParameterVector, centered_labels, features, loss_gradient
from experiments.common.models import feedforward
from experiments.common.training import Trainer
from experiments.feature_evolution import alignment_step, figure, schemes
from experiments.feature_evolution.__main__ import STEPS, STUDY
from experiments.feature_evolution.alignment_step import predicted_change, rademacher, sampled_moments, step_changes
from experiments.feature_evolution.schemes import (
    Scheme,
    TangentFeatures,
    Velocity,
    alignment,
    generalised,
    natural_rate,
)
from experiments.feature_evolution.tables import captured

LAYERS = ["layer1", "layer2", "layer3"]
TINY = [
    *("--depth", "3", "--width", "12", "--train-size", "20", "--steps", "6", "--lr", "0.02"),
    *("--measurements", "4", "--moments", "0", "4", "--probes", "5"),
]


class Network:
    """A tiny network with its dense Jacobian Psi^T and dense output Hessians."""

    def __init__(self, depth: int = 3, width: int = 6, inputs: int = 5, outputs: int = 4, samples: int = 7) -> None:
        generator = torch.Generator().manual_seed(1)
        self.model = feedforward(inputs, width, depth, outputs, seed=0).double()
        self.x = torch.randn(samples, inputs, dtype=torch.float64, generator=generator)
        self.y = torch.arange(samples) % outputs
        self.theta = ParameterVector(self.model)

    def forward(self, vector: Tensor) -> Tensor:
        names = [name for name, _ in self.model.named_parameters()]
        parts = dict(zip(names, self.theta.split(vector), strict=True))
        return torch.func.functional_call(self.model, parts, (self.x,))

    def features(self, vector: Tensor) -> Tensor:
        """Psi, [P, n o]."""
        return torch.func.jacrev(self.forward)(vector).flatten(0, 1).T

    def hessian(self, vector: Tensor, v: Tensor) -> Tensor:
        """H_v, [P, P]."""
        return torch.func.hessian(lambda u: (self.forward(u) * v).sum())(vector)

    def scheme(self, lr: float, velocity: Velocity | None) -> Scheme:
        outputs = self.model(self.x).detach()
        return Scheme(TangentFeatures(self.model, self.x), self.theta.get(), outputs, self.y, lr, velocity)

    def loss_hessian(self) -> tuple[OutputHessian, Tensor]:
        """H_w at the model's parameters, and w."""
        outputs = self.model(self.x)
        w = loss_gradient(outputs, self.y)
        return OutputHessian(self.theta, outputs, w), w


@pytest.fixture
def network() -> Network:
    return Network()


def vector(size: Sequence[int], seed: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- schemes


def test_tangent_features_are_the_jacobian(network: Network) -> None:
    start, psi = TangentFeatures(network.model, network.x), network.features(network.theta.get())
    v, u = vector([7, 4], 2), vector([3, network.theta.size], 3)
    torch.testing.assert_close(start.product(v), psi @ v.flatten())
    for layer, products in zip(LAYERS, start.transposed_products(u), strict=True):
        expected = network.theta.of_layer(u.T, layer).T @ network.theta.of_layer(psi, layer)
        torch.testing.assert_close(products, expected)


@pytest.mark.parametrize("kind", ["lazy", "ofe", "gofe"])
def test_schemes_are_the_difference_equations(kind: str, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equation 17 with everything dense; lazy is training of the linearised network."""
    monkeypatch.setattr(schemes, "RESOLVED", 1e-9)
    lr, rate = 0.3, 2.0
    velocities = {"ofe": lambda theta, w, gradient: rate * gradient, "gofe": generalised(network.model, network.x)}
    scheme = network.scheme(lr, velocities.get(kind))
    theta, outputs = network.theta.get(), network.model(network.x).detach()
    psi = initial = network.features(theta)
    for _ in range(5):
        w = loss_gradient(outputs, network.y).flatten()
        gradient = psi @ w
        if kind == "gofe":
            change = -network.hessian(theta, w.view(7, 4)) @ gradient / (w @ w)
        else:
            change = (rate if kind == "ofe" else 0) * gradient
        theta, outputs = theta - lr * gradient, outputs - lr * (psi.T @ gradient).view(7, 4)
        psi = psi + lr * torch.outer(change, w)
        scheme.step()
    torch.testing.assert_close(scheme.theta, theta)
    torch.testing.assert_close(scheme.outputs, outputs)
    v = vector([7, 4], 4)
    torch.testing.assert_close(scheme.features(v), psi @ v.flatten())
    for layer, change in zip(LAYERS, scheme.kernel_changes(), strict=True):
        after, before = (network.theta.of_layer(p, layer) for p in (psi, initial))
        torch.testing.assert_close(change, after.T @ after - before.T @ before)
    assert len(scheme.basis) == (0 if kind == "lazy" else 5)
    if kind == "lazy":  # by another way: the outputs of the linearised network
        linear = network.model(network.x).detach().flatten() + initial.T @ (theta - network.theta.get())
        torch.testing.assert_close(scheme.outputs.flatten(), linear)


def test_few_directions_stand_for_many_steps(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for resolved in (1e-3, 1e-9):
        monkeypatch.setattr(schemes, "RESOLVED", resolved)
        made.append(network.scheme(0.03, generalised(network.model, network.x)))
        for _ in range(60):
            made[-1].step()
    few, many = made
    assert len(few.basis) < len(many.basis) / 2
    torch.testing.assert_close(few.basis @ few.basis.T, torch.eye(len(few.basis), dtype=torch.float64))
    for of in (lambda s: s.theta - network.theta.get(), lambda s: torch.stack(list(s.kernel_changes()))):
        assert (of(few) - of(many)).norm() < 2e-3 * of(many).norm()


def test_one_step_of_the_generalised_scheme_errs_by_the_square_of_the_rate(network: Network) -> None:
    """The error is in Psi(1) w(0), while no unit switches; features that stay err by the rate itself."""
    w = loss_gradient(network.model(network.x), network.y)
    here = network.theta.get()

    def error(lr: float, velocity: Velocity | None) -> float:
        scheme = network.scheme(lr, velocity)
        scheme.step()
        after = network.features(here - lr * network.features(here) @ w.flatten())
        return float((scheme.features(w) - after @ w.flatten()).norm())

    velocity = generalised(network.model, network.x)
    assert error(1e-4, velocity) / error(5e-5, velocity) == pytest.approx(4, rel=1e-2)
    assert error(1e-4, None) / error(5e-5, None) == pytest.approx(2, rel=1e-2)


def test_the_natural_rate_is_a_least_squares_fit(network: Network) -> None:
    hessian, w = network.loss_hessian()
    wanted = generalised(network.model, network.x)(network.theta.get(), w, hessian.features)
    fit = torch.linalg.lstsq(hessian.features[:, None], wanted[:, None]).solution
    assert natural_rate(hessian, w) == pytest.approx(float(fit), rel=1e-10)


def test_a_scheme_that_is_no_longer_finite_stands_still(network: Network) -> None:
    scheme = network.scheme(0.1, lambda theta, w, gradient: 1e200 * gradient)
    for _ in range(6):
        scheme.step()
    assert not bool(scheme.outputs.isfinite().all())
    before = scheme.state()
    scheme.step()
    assert all(torch.equal(before[name].nan_to_num(), value.nan_to_num()) for name, value in scheme.state().items())


def test_alignment_of_a_dense_kernel_is_the_librarys(network: Network) -> None:
    labels = centered_labels(network.y, 4, torch.float64)
    report = ah.layerwise_alignment(network.model, network.x, network.y, precision="highest")
    kernels = TangentFeatures(network.model, network.x).kernels
    assert [alignment(kernels[layer].to_dense(), labels) for layer in LAYERS] == pytest.approx(report.cka.tolist())


# ---- equation 25


def dense_traces(network: Network, hessian: Tensor) -> Tensor:
    """tr(M_l H^k) for k = 2, 3, 4, [3, L]."""
    powers = [torch.linalg.matrix_power(hessian, k).diagonal() for k in (2, 3, 4)]
    return torch.stack([network.theta.inner_products(power, torch.ones_like(power)) for power in powers])


def test_the_mean_over_all_sign_vectors_is_the_trace() -> None:
    network = Network(depth=3, width=2, inputs=2, outputs=1, samples=5)
    v = torch.ones(5, 1, dtype=torch.float64)
    operator = OutputHessian(network.theta, network.model(network.x), v)
    expected = dense_traces(network, network.hessian(network.theta.get(), v))
    assert float(expected.abs().min()) > 1e-3
    signs = [torch.tensor(z, dtype=torch.float64) for z in itertools.product((-1, 1), repeat=10)]
    torch.testing.assert_close(sampled_moments(operator, network.theta, signs).mean(0), expected)


def test_predictions_from_random_vectors_err_as_they_say(network: Network) -> None:
    lr = 2.0
    operator, w = network.loss_hessian()
    second, third, fourth = dense_traces(network, network.hessian(network.theta.get(), w))
    expected = (lr**2 * fourth - 2 * lr * third) / second
    signs = list(rademacher(network.theta.size, 1000, np.random.SeedSequence(5), torch.device("cpu")))
    moments = sampled_moments(operator, network.theta, signs)
    change, error = predicted_change(moments, lr)
    assert float(((change - expected) / error).abs().max()) < 4
    repeats = [predicted_change(part, lr) for part in moments.split(40)]
    spread = torch.stack([change for change, _ in repeats]).std(0)
    claimed = torch.stack([error for _, error in repeats]).mean(0)
    assert bool(((spread / claimed > 0.6) & (spread / claimed < 1.6)).all())


def test_the_seed_fixes_the_signs() -> None:
    def draw(seed: int) -> Tensor:
        return torch.stack(list(rademacher(50, 4, np.random.SeedSequence(seed), torch.device("cpu"))))

    assert set(draw(0).unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def stages(network: Network, lr: float) -> dict[str, np.ndarray]:
    """The columns of ``step_changes``, [L]."""
    signs = rademacher(network.theta.size, 4, np.random.SeedSequence(0), torch.device("cpu"))
    rows = step_changes(network.model, network.x, network.y, lr, signs)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_measured_changes_are_those_of_a_step(network: Network) -> None:
    lr, here = 0.01, network.theta.get()
    found = stages(network, lr)
    assert torch.equal(network.theta.get(), here)
    assert found["layer"].tolist() == [1, 2, 3]
    labels = centered_labels(network.y, 4, torch.float64)

    def measured() -> tuple[Tensor, Tensor]:
        """Alignments and |Psi_l y~|^2, [L] each."""
        report = ah.layerwise_alignment(network.model, network.x, network.y, precision="highest")
        of_labels = features(network.theta, network.model(network.x), labels)
        return report.cka, network.theta.inner_products(of_labels, of_labels)

    before = measured()
    network.theta.set(here - lr * network.loss_hessian()[0].features)
    after = measured()
    for name, old, new in zip(("measured", "numerator"), before, after, strict=True):
        np.testing.assert_allclose(found[name], (new / old - 1).numpy(), rtol=1e-8)


def test_stages_agree_where_their_assumptions_hold(network: Network) -> None:
    """Linearised features err by the square of the rate; a w along the labels makes the two Hessians one."""
    errors = [stages(network, lr) for lr in (1e-4, 5e-5)]
    coarse, fine = (np.abs(found["linearised"] - found["numerator"]) for found in errors)
    np.testing.assert_allclose(coarse / fine, 4, rtol=0.05)
    apart = np.abs(errors[0]["collinear"] / errors[0]["linearised"] - 1)
    assert apart.max() > 0.05
    network.x *= 1e-6  # outputs close to 0, so that w is close to -y~ / n
    together = stages(network, 0.1)
    np.testing.assert_allclose(together["collinear"], together["linearised"], rtol=1e-4)


# ---- the study


def results(output: Path) -> dict[str, bytes]:
    """Metrics and tables."""
    return {path.name: path.read_bytes() for path in sorted((output / "seed-0").glob("*.csv"))}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest."""
    for name in ("feature_evolution", "alignment_step"):
        monkeypatch.setattr(figure, name, lambda *arguments: None)


def test_a_run_leaves_metrics_figures_and_tables(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    printed = capsys.readouterr().out
    assert re.search(r"\n  GOFE +\d\.\d{4}( +\d\.\d{3} +\w+){3}\n", printed)
    assert re.search(r"\n  layer3( +0\.\d{4}){5}\n", printed)
    assert re.search(r"\n +4 +2( +-?\d+\.\d{3}){6}\n", printed)
    for name in ("feature_evolution", "alignment_step"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(results(tmp_path)) == [f"{STEPS}.csv", "metrics.csv"]
    assert results(tmp_path) == results(output)


def test_what_is_measured(output: Path) -> None:
    """At the start everything agrees; at the end columns are the network's in the checkpoint."""
    rows = studies.numbers(output / "seed-0" / "metrics.csv")
    assert [row["iteration"] for row in rows] == [0, 1, 2, 4, 6]
    first, last = rows[0], rows[-1]
    for name in ("gofe", "ofe", "lazy"):
        assert first[f"{name}_loss"] == pytest.approx(first["train_loss"], rel=1e-12)
        assert first[f"{name}_distance"] == 0
        assert 0 < rows[1][f"{name}_distance"] < 1e-12  # the first step is the same
        assert last[f"{name}_distance"] > 1e-3
        for layer in LAYERS:
            assert first[f"{name}_cka/{layer}"] == pytest.approx(first[f"cka/{layer}"], rel=1e-12)
            assert max(first[f"{name}_{what}_error/{layer}"] for what in ("kernel", "feature")) < 1e-12
            assert min(last[f"{name}_{what}_error/{layer}"] for what in ("kernel", "feature")) > 1e-3
    assert {row["lazy_cka/layer2"] for row in rows} == {first["lazy_cka/layer2"]}
    assert [row["train_loss"] for row in rows] == sorted((row["train_loss"] for row in rows), reverse=True)

    digits = data.load("digits")
    chosen = data.stratified_subset(digits.train_y, 20, seed=0)
    x, y = digits.train_x[chosen].double(), digits.train_y[chosen]
    model = feedforward(64, 12, 3, 10, seed=0).double()
    for row in (first, last):
        report = ah.layerwise_alignment(model, x, y, precision="highest")
        assert [row[f"cka/{layer}"] for layer in LAYERS] == pytest.approx(report.cka.tolist(), rel=1e-10)
        w = loss_gradient(model(x), y)
        correlation = torch.corrcoef(torch.stack([w.flatten(), torch.eye(10, dtype=w.dtype)[y].flatten()]))[0, 1]
        assert row["collinearity"] == pytest.approx(float(correlation), rel=1e-10)
        model.load_state_dict(torch.load(output / "seed-0" / "checkpoint.pt", weights_only=True)["state"]["model"])


def test_gradient_descent_is_plain() -> None:
    """Two steps of the trainer, by hand."""
    network = Network()
    theta = network.theta.get()
    for _ in range(2):
        outputs = network.forward(theta)
        theta = theta - 0.1 * network.features(theta) @ loss_gradient(outputs, network.y).flatten()
    trainer = schemes.Evolution(network.model, network.x, network.y, 0.1, 2, {})
    trainer.step()
    trainer.step()
    torch.testing.assert_close(network.theta.get(), theta)


def test_predicted_steps_are_kept_for_every_layer(output: Path) -> None:
    rows = studies.numbers(output / "seed-0" / f"{STEPS}.csv")
    assert [(row["iteration"], row["layer"]) for row in rows] == [(t, layer) for t in (0, 4) for layer in (1, 2, 3)]
    metrics = {row["iteration"]: row for row in studies.numbers(output / "seed-0" / "metrics.csv")}
    for row in rows[:3]:  # the step from iteration 0 was taken, and measured
        before, after = (metrics[t][f"cka/layer{row['layer']:.0f}"] for t in (0, 1))
        assert row["measured"] == pytest.approx(after / before - 1, rel=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_a_given_rate_of_ofe_counts(output: Path, tmp_path: Path) -> None:
    """A rate of 0 is lazy; the default is that of the first row."""
    command = [*TINY, "--moments", "0", "--probes", "2"]
    assert STUDY.main([*command, "--ofe-rate", "0", "--output", str(tmp_path / "none")]) == 0
    for row in studies.numbers(tmp_path / "none" / "seed-0" / "metrics.csv"):
        assert row["ofe_loss"] == row["lazy_loss"]
        assert row["ofe_kernel_error/layer1"] == row["lazy_kernel_error/layer1"]
    rows = studies.numbers(output / "seed-0" / "metrics.csv")
    rate = str(rows[0]["natural_rate"])
    assert STUDY.main([*command, "--ofe-rate", rate, "--output", str(tmp_path / "natural")]) == 0
    assert studies.numbers(tmp_path / "natural" / "seed-0" / "metrics.csv")[-1] == rows[-1]


def test_a_scheme_that_leaves_all_bounds_is_a_gap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--ofe-rate", "1e200", "--output", str(tmp_path)]) == 0
    assert re.search(r"\n  OFE +nan", capsys.readouterr().out)
    last = studies.numbers(tmp_path / "seed-0" / "metrics.csv")[-1]
    assert last["gofe_loss"] < 10
    assert (tmp_path / "feature_evolution.png").exists()


def test_until_when_an_error_is_small() -> None:
    rows: list[dict[str, float]] = [{"iteration": t} for t in (0, 1, 3, 9)]
    for errors, expected in (
        ([0.0, 0.1, 0.2, 0.05], "1"),
        ([0.0, 0.1, 0.1, 0.0], "end"),
        ([0.0, 0.2, 0.0, 0.0], "0"),
        ([np.nan, 0.0, 0.0, 0.0], "never"),
        ([0.0, 0.0, 0.0, np.nan], "3"),
    ):
        assert captured(rows, np.array(errors)) == expected


# ---- going on


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("iteration", [0, 3, 5])
def test_an_interrupted_run_goes_on_to_the_same_results(
    iteration: int, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TINY, "--output", str(tmp_path)]
    with studies.interrupted(monkeypatch, lambda trainer: trainer.iteration == iteration):
        assert STUDY.main(command) == 128 + signal.SIGTERM
    told = capsys.readouterr()
    assert "to go on:" in told.err
    assert "figures:" not in told.out
    assert STUDY.main(command) == 0
    assert "iteration 0/" not in capsys.readouterr().err
    assert results(tmp_path) == results(output)
    assert STUDY.main(command) == 0
    assert "finished before" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_ended_without_warning_goes_on_from_its_checkpoint(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    command = [*TINY, "--checkpoint-every", "3", "--output", str(tmp_path)]
    for iteration in (3, 5):

        def dying(trainer: Trainer, iteration: int = iteration) -> float:
            if trainer.iteration == iteration:
                raise KeyboardInterrupt
            return step(trainer)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", dying)
            with pytest.raises(KeyboardInterrupt):
                STUDY.main(command)
        assert torch.load(tmp_path / "seed-0" / "checkpoint.pt", weights_only=True)["state"]["iteration"] in (3, 4)
    assert STUDY.main(command) == 0
    assert results(tmp_path) == results(output)


def test_a_finished_run_is_only_drawn(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(output / "seed-0", tmp_path / "seed-0")
    monkeypatch.setattr(Trainer, "step", None)
    monkeypatch.setattr(alignment_step, "sampled_moments", None)
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 0
    for path in output.glob("*.*"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert results(tmp_path) == results(output)


def test_another_configuration_is_refused(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(output / "seed-0", tmp_path / "seed-0")
    before = results(tmp_path)
    assert STUDY.main([*TINY, "--output", str(tmp_path), "--ofe-rate", "3"]) == 2
    assert "ofe_rate: None there, 3.0 asked for" in capsys.readouterr().err
    assert results(tmp_path) == before


# ---- refusals


@pytest.mark.usefixtures("undrawn")
def test_divergence_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STUDY.main([*TINY, "--lr", "1e150", "--measurements", "2", "--output", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "seed-0: training diverged" in message
    assert "smaller --lr" in message
