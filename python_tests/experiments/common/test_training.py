"""The network's initialisation, and training that does not notice being interrupted."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from experiments.common.models import feedforward
from experiments.common.training import (
    OPTIMIZERS,
    DivergedError,
    Recipe,
    Trainer,
    evaluate,
    flushed_denormals,
)


def trainer(**changes: float | str) -> Trainer:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(50, 6, generator=generator)
    y = torch.randint(0, 3, (50,), generator=generator)
    recipe = Recipe(**{"lr": 0.05, "batch_size": 16, "epochs": 5, "seed": 1, **changes})  # type: ignore[arg-type]
    return Trainer(feedforward(6, 8, 3, 3, seed=0), x, y, recipe)


def parameters(trained: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


# ---- the network


def test_network_is_equation_8() -> None:
    model = feedforward(4, 5, 3, 2, seed=0)
    assert [name for name, _ in model.named_children()] == ["layer1", "relu1", "layer2", "relu2", "layer3"]
    w1, w2, w3 = (p.detach() for p in model.parameters())
    assert [tuple(w.shape) for w in (w1, w2, w3)] == [(5, 4), (5, 5), (2, 5)]
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    expected = (w3 @ torch.relu(w2 @ torch.relu(w1 @ x.T))).T
    torch.testing.assert_close(model(x), expected)


def test_initialisation_is_he() -> None:
    model = feedforward(400, 500, 3, 300, seed=0)
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight = layer.weight.detach().double()
            sigma, count = math.sqrt(2 / layer.in_features), weight.numel()
            assert abs(weight.mean()) < 5 * sigma / math.sqrt(count)
            assert abs(weight.std() / sigma - 1) < 5 / math.sqrt(2 * count)
            kurtosis = (weight / weight.std()).pow(4).mean()
            assert abs(kurtosis - 3) < 5 * math.sqrt(24 / count)  # Gaussian, not uniform


def test_initialisation_depends_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, same, other = (feedforward(4, 5, 3, 2, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_network_of_one_layer() -> None:
    assert [name for name, _ in feedforward(4, 5, 1, 2, seed=0).named_children()] == ["layer1"]
    with pytest.raises(ValueError, match="depth: expected at least 1, got 0"):
        feedforward(4, 5, 0, 2, seed=0)


# ---- training


def test_every_epoch_takes_every_sample_once_in_its_own_order() -> None:
    t = trainer()
    assert (t.batches_per_epoch, t.total) == (4, 20)
    epochs = [torch.cat([t.batch(4 * e + i) for i in range(4)]) for e in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(50)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(trainer().batch(6), t.batch(6))  # without having drawn the batches before it
    assert not torch.equal(trainer(seed=2).batch(6), t.batch(6))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop", [0, 1, 4, 7, 19])
def test_resuming_gives_the_same_bits(stop: int, optimizer: str) -> None:
    whole, part, rest = (trainer(optimizer=optimizer) for _ in range(3))
    whole.run([], lambda: None)
    for _ in range(stop):
        part.step()
    file = io.BytesIO()
    torch.save(part.state(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    rest.restore(state)
    assert rest.iteration == stop
    assert rest.run([], lambda: None)
    assert torch.equal(parameters(rest), parameters(whole))
    file.seek(0)
    assert str(state) == str(torch.load(file, weights_only=True))  # what was restored is not trained on


def test_measuring_changes_nothing_and_happens_where_asked() -> None:
    plain, measured = trainer(), trainer()
    seen: list[int] = []

    def measure() -> None:
        seen.append(measured.iteration)
        evaluate(measured.model, measured.x, measured.y)

    plain.run([], lambda: None)
    measured.run([0, 1, 5, 20], measure)
    assert seen == [0, 1, 5, 20]
    assert torch.equal(parameters(plain), parameters(measured))


def test_weight_decay_and_momentum_are_torchs() -> None:
    t = trainer(momentum=0.5, weight_decay=0.1, batch_size=50)
    weight = next(t.model.parameters())
    velocity = torch.zeros_like(weight)
    for _ in range(3):
        before = weight.detach().clone()
        t.step()
        assert weight.grad is not None
        velocity = 0.5 * velocity + weight.grad + 0.1 * before
        torch.testing.assert_close(weight.detach(), before - 0.05 * velocity)


def test_adam_is_torchs() -> None:
    t, weights = trainer(optimizer="adam", momentum=0.8, weight_decay=0.1, batch_size=50), []
    model = feedforward(6, 8, 3, 3, seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=0.05, betas=(0.8, 0.999), weight_decay=0.1)
    for step in range(3):
        chosen = t.batch(step)
        t.step()
        adam.zero_grad()
        nn.functional.cross_entropy(model(t.x[chosen]), t.y[chosen]).backward()
        adam.step()
        weights.append(torch.equal(parameters(t), torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert weights == [True] * 3


def test_unknown_optimizers_are_refused() -> None:
    with pytest.raises(ValueError, match="optimizer: expected one of sgd, adam, got 'lamb'"):
        trainer(optimizer="lamb")


def test_evaluation_leaves_modes_and_batch_norms_alone() -> None:
    x, y = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(9, dtype=torch.int64)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout())
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert evaluate(model, x, y) == evaluate(model.eval(), x, y)
    model.train()
    model[2].eval()
    evaluate(model, x, y)
    assert [module.training for module in model] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_denormals_are_zero_in_the_block_alone() -> None:
    small = torch.full((3,), 2e-38)  # hardly normal
    with flushed_denormals() as flushed:
        assert bool((small * 0.1 == 0).all()) == flushed
    assert bool((small * 0.1 != 0).all())


def test_run_stops_when_told() -> None:
    t = trainer()
    assert not t.run([], lambda: None, after_step=lambda _: t.iteration == 3)
    assert t.iteration == 3


def test_divergence_is_an_error_that_names_the_iteration() -> None:
    with pytest.raises(DivergedError, match=r"diverged: the loss at iteration \d+ is (nan|inf).*1e\+18"):
        trainer(lr=1e18).run([], lambda: None)


def test_evaluate_is_the_mean_over_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.common.training.EVALUATION_BATCH", 7)
    t = trainer()
    loss, accuracy = evaluate(t.model, t.x, t.y)
    outputs = t.model(t.x)
    assert loss == pytest.approx(nn.functional.cross_entropy(outputs, t.y).item(), rel=1e-6)
    assert accuracy == (outputs.argmax(1) == t.y).double().mean().item()
