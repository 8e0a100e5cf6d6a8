"""The network's initialisation, and training that does not notice being interrupted."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch
from torch import nn

from experiments.common.augmentation import CropsAndFlips
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


def test_xavier_weights_have_the_mean_of_both_variances() -> None:
    kaiming, xavier = (feedforward(400, 500, 2, 300, seed=0, initialisation=of) for of in ("kaiming", "xavier"))
    for layer, same in zip(kaiming, xavier, strict=True):
        if isinstance(layer, nn.Linear):
            ratio = math.sqrt(layer.in_features / (layer.in_features + layer.out_features))
            torch.testing.assert_close(same.weight, ratio * layer.weight)


def test_biases_are_zero_and_leave_the_weights_alone() -> None:
    without, having = (feedforward(4, 5, 3, 2, seed=0, bias=bias) for bias in (False, True))
    found = dict(having.named_parameters())
    assert not any(found.pop(f"layer{i}.bias").any() for i in (1, 2, 3))
    assert all(torch.equal(found[name], weight) for name, weight in without.named_parameters())


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


@pytest.mark.parametrize("stop_loss", [1.08, 1.0, 0.8])
def test_a_run_ends_at_the_second_epoch_end_in_a_row_with_a_small_averaged_loss(stop_loss: float) -> None:
    t, losses = trainer(stop_loss=stop_loss, epochs=60), []

    def after_step(loss: float) -> bool:
        losses.append(loss)
        return t.loss_reached

    t.run([], lambda: None, after_step)
    averages = list(itertools.accumulate(losses, lambda average, loss: 0.9 * average + 0.1 * loss))
    assert averages[-1] == pytest.approx(t.averaged_loss)
    small = [average < stop_loss for average in averages[3::4]]  # of four iterations in each epoch
    assert 4 * len(small) == t.iteration < t.total
    assert [a and b for a, b in itertools.pairwise(small)] == [False] * (len(small) - 2) + [True]


def test_a_loss_that_grows_again_does_not_end_a_run() -> None:
    t, losses = trainer(stop_loss=0.5, epochs=5), iter([0.4, 9.0, 0.1, 0.1, 0.1])
    t.batches_per_epoch, ended = 1, []
    t.step = lambda: setattr(t, "iteration", t.iteration + 1) or t._follow(next(losses))  # type: ignore[method-assign]
    for _ in range(5):
        t.averaged_loss = math.nan  # so that each loss is the average
        t.step()
        ended.append(t.loss_reached)
    assert ended == [False, False, False, True, True]


@pytest.mark.parametrize("stop", [3, 7, 25])
def test_resuming_gives_the_same_bits_with_a_stopping_rule_and_augmentation(stop: int) -> None:
    def started() -> Trainer:
        recipe = Recipe(lr=0.02, batch_size=16, epochs=40, stop_loss=0.7, augment=True)
        return Trainer(feedforward(3 * 64, 8, 3, 3, seed=0, bias=True), *colour_images(), recipe)

    whole, part, rest = (started() for _ in range(3))
    whole.run([], lambda: None, lambda _: whole.loss_reached)
    for _ in range(stop):
        part.step()
    rest.restore(part.state())
    rest.run([], lambda: None, lambda _: rest.loss_reached)
    assert stop < rest.iteration == whole.iteration < whole.total
    assert rest.averaged_loss == whole.averaged_loss
    assert torch.equal(parameters(rest), parameters(whole))


def colour_images() -> tuple[torch.Tensor, torch.Tensor]:
    """100 images of 8 x 8 in three classes, each brighter in one channel, with something black in each channel."""
    y = torch.arange(100) % 3
    x = torch.rand(100, 3, 64, generator=torch.Generator().manual_seed(3)) - 0.5
    x[torch.arange(100), y] += 2
    x[0, :, 0] = torch.tensor([-1.0, -2.0, -3.0])
    return x.flatten(1), y


def test_augmented_images_are_crops_and_flips_with_a_black_border() -> None:
    x, _ = colour_images()
    augmented = CropsAndFlips(x, seed=0)
    found = augmented(x, iteration=5)
    black = torch.tensor([-1.0, -2.0, -3.0]).view(3, 1, 1)
    places = []
    for image, other in zip(x.view(-1, 3, 8, 8), found.view(-1, 3, 8, 8), strict=True):
        bordered = black.expand(3, 16, 16).clone()
        bordered[:, 4:12, 4:12] = image
        crops = {
            (down, right, flipped): bordered[:, down : down + 8, right : right + 8].flip([2] if flipped else [])
            for down in range(9)
            for right in range(9)
            for flipped in (False, True)
        }
        places += [place for place, crop in crops.items() if torch.equal(crop, other)]
    assert len(places) == len(x)
    assert [len(set(column)) for column in zip(*places, strict=True)] == [9, 9, 2]  # of 100 draws each
    assert torch.equal(CropsAndFlips(x, seed=0)(x, iteration=5), found)
    assert not torch.equal(augmented(x, iteration=6), found)
    assert not torch.equal(CropsAndFlips(x, seed=1)(x, iteration=5), found)


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
