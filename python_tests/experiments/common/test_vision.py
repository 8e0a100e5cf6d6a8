"""The image networks: sizes, seeds, and their alignment against Jacobians."""

from __future__ import annotations

from functools import partial

import pytest
import reference
import torch

import ahkernels as ah
from experiments.common import vision

# Trainable numbers for 10 classes: 20.0 and 11.2 million, as in the literature on CIFAR.
NETWORKS = {
    "vgg19": (vision.vgg19, {"width": 1 / 32}, 20_029_514),
    "vgg19 with batch norm": (partial(vision.vgg19, batch_norm=True), {"width": 1 / 32}, 20_035_018),
    "resnet18": (vision.resnet18, {"width": 1 / 16}, 11_173_962),
    "vit": (vision.vision_transformer, {"width": 8, "depth": 1, "heads": 2, "patch": 16}, None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_and_seeds(name):
    build, small, numbers = NETWORKS[name]
    before = torch.get_rng_state()
    if numbers is not None:
        assert sum(parameter.numel() for parameter in build(10, seed=0).parameters()) == numbers
    first, again, other = (build(10, seed=seed, **small) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert first(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_alignment_against_jacobians(name):
    build, small, _ = NETWORKS[name]
    model = build(3, seed=0, **small).double().eval()
    x, y = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    report = ah.layerwise_alignment(model, x, y)
    jacobians = reference.jacobians(model, x)
    assert set(report) == set(jacobians)
    for layer, jacobian in jacobians.items():
        expected = reference.kernels_of_outputs(jacobian, "all")
        got = reference.cka(expected, reference.label_kernel(y, 3, "all"))
        assert report[layer] == pytest.approx(got, rel=1e-8, abs=1e-12)


def test_vgg19_has_biases_and_a_start_at_which_signals_keep_their_size():
    model = vision.vgg19(10, seed=0, width=1 / 4)
    layers = [module for module in model if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    assert (len(layers), [layer.out_channels for layer in layers[:3]]) == (17, [16, 16, 32])
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model)
    for layer in layers:
        assert layer.bias.eq(0).all()
        assert layer.weight.square().mean().item() == pytest.approx(2 / layer.weight[0].numel(), rel=0.2)
    outputs = model(torch.randn(50, 3, 32, 32))
    assert 0.1 < outputs.square().mean() < 10


def test_flat_images_are_repeated_and_padded():
    x = torch.arange(2 * 64.0).reshape(2, 64)
    images = vision.FlatImages(64, 1)(x)
    assert images.shape == (2, 1, 32, 32)
    assert torch.equal(images[:, 0, ::4, ::4].flatten(1), x)
    assert torch.equal(images[:, 0, 3::4, 3::4].flatten(1), x)
    grey = vision.FlatImages(784, 1)(torch.ones(1, 784))
    assert (grey.sum(), grey[0, 0, 2:30, 2:30].sum()) == (784, 784)
    colour = torch.randn(2, 3 * 32 * 32)
    assert torch.equal(vision.FlatImages(3072, 3)(colour).flatten(1), colour)
    for d, channels in ((63, 1), (64, 3), (33 * 33, 1), (0, 1)):
        with pytest.raises(ValueError, match=f"d: expected {channels} times a square of 1 ... 32, got {d}"):
            vision.FlatImages(d, channels)
