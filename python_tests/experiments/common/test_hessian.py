"""Output Hessians as products against torch.func, and theorem A."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from experiments.common import hessian
from experiments.common.models import feedforward


@pytest.fixture
def network() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    model = feedforward(5, 6, 3, 4, seed=0).double()
    generator = torch.Generator().manual_seed(1)
    return model, torch.randn(7, 5, dtype=torch.float64, generator=generator), torch.arange(7) % 4


def dense(model: torch.nn.Module, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """H_v by torch.func, [P, P]."""
    theta = hessian.ParameterVector(model)
    names = [name for name, _ in model.named_parameters()]

    def total(vector: torch.Tensor) -> torch.Tensor:
        parts = dict(zip(names, theta.split(vector), strict=True))
        return (torch.func.functional_call(model, parts, (x,)) * v).sum()

    return torch.func.hessian(total)(theta.get())


def test_products_and_eigenpairs_are_those_of_the_dense_hessian(network) -> None:
    model, x, y = network
    theta, outputs = hessian.ParameterVector(model), model(x)
    w = hessian.loss_gradient(outputs, y)
    operator, expected = hessian.OutputHessian(theta, outputs, w), dense(model, x, w)
    u = torch.randn(theta.size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(operator @ u, expected @ u)
    torch.testing.assert_close(operator.features, hessian.features(theta, outputs, w))
    found = operator.top(6, tolerance=1e-12)
    values = np.linalg.eigvalsh(expected.numpy())
    np.testing.assert_allclose(np.sort(found.values), np.sort(values[np.argsort(-np.abs(values))[:6]]), atol=1e-10)
    residual = expected.numpy() @ found.vectors - found.vectors * found.values
    assert np.abs(residual).max() < 1e-8
    assert (np.diff(np.abs(found.values)) <= 0).all()


def test_theorem_a(network) -> None:
    """H_v theta = (L - 1) Psi v, for networks that are piecewise linear and have no biases."""
    model, x, _ = network
    theta, outputs = hessian.ParameterVector(model), model(x)
    v = torch.randn(outputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    operator = hessian.OutputHessian(theta, outputs, v)
    torch.testing.assert_close(operator @ theta.get(), 2 * operator.features)


def test_the_loss_gradient_is_autograds(network) -> None:
    model, x, y = network
    outputs = model(x).detach().requires_grad_()
    functional.cross_entropy(outputs, y).backward()
    torch.testing.assert_close(hessian.loss_gradient(outputs, y), outputs.grad)
    labels = hessian.centered_labels(y, 4, torch.float64)
    assert abs(float(labels.sum())) < 1e-14
    assert set(labels.unique().tolist()) == {0.75, -0.25}


def test_parameters_as_a_vector(network) -> None:
    model, x, _ = network
    theta = hessian.ParameterVector(model)
    assert theta.layers == ["layer1", "layer2", "layer3"]
    assert theta.size == 5 * 6 + 6 * 6 + 6 * 4
    before, vector = model(x), theta.get()
    torch.testing.assert_close(theta.of_layer(vector, "layer2"), model.layer2.weight.detach().flatten())
    energies = theta.inner_products(vector, vector)
    torch.testing.assert_close(energies[1], model.layer2.weight.detach().square().sum())
    torch.testing.assert_close(energies.sum(), vector.square().sum())
    theta.set(2 * vector)
    torch.testing.assert_close(model(x), 8 * before)
