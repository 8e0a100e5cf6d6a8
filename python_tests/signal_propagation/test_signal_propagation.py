"""The theory of infinite width against 50-digit arithmetic, against quadrature, and against wide networks."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import ahkernels as ah
from ahkernels import signal_propagation as sp

SMOOTH = {"tanh": mpmath.tanh, "erf": mpmath.erf, "gelu": lambda x: x * mpmath.ncdf(x)}


@pytest.fixture(autouse=True)
def _fifty_digits():
    with mpmath.workdps(50):
        yield


def exact(gamma: str, kappa: float, depth: int, at: set[int]) -> dict[int, tuple[mpmath.mpf, mpmath.mpf]]:
    """gamma of layers and the product of slopes of layers 1 ... l - 1, straight from equations 3 and 4."""
    g, k, product, found = mpmath.mpf(gamma), mpmath.mpf(kappa), mpmath.mpf(1), {}
    for layer in range(1, depth + 1):
        if layer in at:
            found[layer] = g, product
        t = mpmath.acos(1 - g)
        product *= 1 - k * t / mpmath.pi
        g -= k * (mpmath.sin(t) - t * mpmath.cos(t)) / mpmath.pi
    return found


@pytest.mark.parametrize(
    ("gamma", "slope", "depth"),
    [("1.5", 0.0, 100_000), ("0.1", 0.0, 10_000), ("1e-12", 0.0, 10_000), ("1.5", 0.5, 3_000), ("0.25", -0.5, 1_000)],
)
def test_homogeneous_networks_agree_with_50_digits_at_any_depth(gamma, slope, depth):
    layers = sorted({1, 2, 10, 57, 300, depth // 2, depth - 1, depth})
    network = sp.Network(sp.LeakyReLU(slope))
    found = sp.propagate(network, sp.InputPairs(np.array([float(gamma)])), layers)
    want = exact(repr(float(gamma)), network.homogeneous_map.kappa, depth, set(layers))
    back = found.backward_information(depth)[:, 0]
    for j, layer in enumerate(layers):
        g, product = want[layer]
        assert abs(found.gamma[j, 0] / g - 1) < 1e-10
        assert abs(back[j] / (want[depth][1] / product) - 1) < 1e-10


def test_every_layer_in_turn_gives_what_one_step_gives():
    pairs = sp.InputPairs.of_correlations([-1.0, -0.3, 0.0, 0.9, 1.0])
    all_layers, few = (sp.propagate(sp.Network(), pairs, layers) for layers in (2000, [1, 2, 1999, 2000]))
    np.testing.assert_allclose(few.gamma[-1], all_layers.gamma[-1], rtol=1e-12)
    np.testing.assert_allclose(
        few.backward_information(2000)[:2], all_layers.backward_information(2000)[:2], rtol=1e-11
    )


@pytest.mark.parametrize("name", sorted(SMOOTH))
@pytest.mark.parametrize(("q", "p", "gamma"), [(0.6, 0.6, 0.3), (0.6, 1.4, 1e-3), (2.0, 2.0, 1e-9), (0.5, 0.7, 1.6)])
def test_smooth_activations_agree_with_quadrature(name, q, p, gamma):
    phi = SMOOTH[name]
    network = sp.Network(name, weight_variance=1.0)
    pair = network.activation.pair((np.array(q), np.array(p)), np.array(gamma))

    def average(f):
        # Gaussian averages by the trapezoidal rule, which converges geometrically for these functions
        step = mpmath.mpf(1) / 5
        z = [step * i for i in range(-55, 56)]
        w = [mpmath.npdf(x) * step for x in z]
        return mpmath.fsum(u * v * f(x, y) for x, u in zip(z, w, strict=True) for y, v in zip(z, w, strict=True))

    with mpmath.workdps(25):
        a, b = mpmath.sqrt(1 - mpmath.mpf(gamma) / 2), mpmath.sqrt(mpmath.mpf(gamma) / 2)
        rq, rp = mpmath.sqrt(q), mpmath.sqrt(p)
        values = {}

        def at(x):
            return values.setdefault(x, phi(x))

        first = average(lambda x, y: at(rq * (a * x + b * y)) ** 2)
        second = average(lambda x, y: at(rp * (a * x - b * y)) ** 2)
        # |u - v|^2 / 2 of unit vectors, with digits to spare
        lost = average(
            lambda x, y: (
                (at(rq * (a * x + b * y)) / mpmath.sqrt(first) - at(rp * (a * x - b * y)) / mpmath.sqrt(second)) ** 2
                / 2
            )
        )
    assert pair.moments[0] == pytest.approx(float(first), rel=1e-10)
    assert pair.moments[1] == pytest.approx(float(second), rel=1e-10)
    assert pair.gamma == pytest.approx(float(lost), rel=1e-6 if gamma < 1e-8 else 1e-9)


@pytest.mark.parametrize("name", ["tanh", "erf", "gelu", "relu", "leaky_relu"])
def test_slope_is_the_derivative_of_the_map(name):
    network = sp.Network(name, weight_variance=1.5, bias_variance=0.1)
    c, h = np.array([-0.6, 0.1, 0.7, 0.95]), 1e-6
    numeric = (network.correlation_map(c + h, 0.8) - network.correlation_map(c - h, 0.8)) / (2 * h)
    np.testing.assert_allclose(network.correlation_slope(c, 0.8), numeric, rtol=1e-7)


def test_edge_of_chaos_has_unit_slope_at_a_stable_variance():
    for name, bias in (("tanh", 0.05), ("erf", 0.05), ("tanh", 0.5)):
        network = sp.Network(name, bias_variance=bias)
        q = network.variance_fixed_point()
        assert network.variance_map(q) == pytest.approx(q, rel=1e-12)
        assert network.correlation_slope(1.0) == pytest.approx(1, rel=1e-9)
        assert math.isinf(network.depth_scales().correlation)
    assert sp.edge_of_chaos("relu") == 2
    assert sp.edge_of_chaos("tanh") == pytest.approx(1, rel=1e-12)
    assert sp.edge_of_chaos("erf") == pytest.approx(math.pi / 4, rel=1e-12)
    ordered, chaotic = (sp.Network("tanh", weight_variance=w, bias_variance=0.05) for w in (1.0, 4.0))
    assert ordered.correlation_fixed_point() == 1
    c = chaotic.correlation_fixed_point()
    assert 0 < c < 0.99
    assert chaotic.correlation_map(c) == pytest.approx(c, rel=1e-9)


def test_depth_scale_is_the_rate_at_which_correlations_settle():
    network = sp.Network("tanh", weight_variance=1.2, bias_variance=0.05)
    q = network.variance_fixed_point()
    scale = (q - 0.05) / 1.2
    found = sp.propagate(network, sp.InputPairs(np.array([0.1]), (np.array(scale), np.array(scale))), 40)
    assert math.log(found.gamma[29, 0] / found.gamma[39, 0]) / 10 == pytest.approx(
        1 / network.depth_scales().correlation, rel=1e-3
    )


def test_exponents_of_theorems_and_corollary():
    network, depths = sp.Network(), np.unique(np.round(np.geomspace(1e3, 1e7, 17)).astype(int))
    theory = sp.asymptotics(network)
    pairs = sp.InputPairs.apart(0.1)
    forward = sp.propagate(network, pairs, depths).forward_gamma.max(axis=1)
    assert sp.fit_power_law(depths, forward).exponent == pytest.approx(-2, rel=0.01)
    fit = sp.fit_power_law(depths, forward, [np.log(depths) / depths, 1 / depths])
    assert fit.exponent == pytest.approx(-2, abs=1e-5)
    assert fit.constant == pytest.approx(theory.forward_constant, rel=1e-3)
    layers = np.round(depths**0.5).astype(int)
    backward = [
        sp.information_loss(network, int(depth), pairs, [int(layer)]).backward[0]
        for depth, layer in zip(depths, layers, strict=True)
    ]
    fit = sp.fit_power_law(depths / layers, backward, [np.log(layers) / layers, 1 / layers])
    assert fit.exponent == pytest.approx(-3, rel=0.01)
    balance = sp.equilibrium(network, depths)
    fit = sp.fit_power_law(depths, balance, [np.log(depths) / depths**0.6, 1 / depths**0.6])
    assert fit.exponent == pytest.approx(0.6, abs=0.001)
    assert fit.constant == pytest.approx(theory.equilibrium_constant, rel=0.01)


def test_backward_information_at_a_share_of_the_depth():
    for alpha in (0.25, 0.5):
        depth = 10**6
        found = sp.information_loss(sp.Network(), depth, layers=[int(alpha * depth)]).backward[0]
        expected = alpha**3 * 4.5 * (1 / alpha - 1) * math.log(depth) / depth
        assert found - alpha**3 == pytest.approx(expected, rel=0.7)
        assert found > alpha**3


def test_residual_branches_move_the_equilibrium():
    depths = np.array([10**4, 10**5, 10**6])
    plain, residual = (sp.equilibrium(sp.Network(branch_scale=s), depths) for s in (None, 0.5))
    assert (residual > plain).all()
    ratio = residual[-1] / plain[-1]
    assert ratio == pytest.approx((1 + 1 / 0.5**2 / 1) ** 0.4, rel=0.05)
    shares = [sp.equilibrium(sp.Network(branch_scale=n**-0.5), n)[0] / n for n in (300, 3000)]
    assert shares[0] == pytest.approx(shares[1], rel=0.01, nan_ok=True)


def test_alignment_of_infinite_width_is_that_of_its_dense_kernels():
    x, y = torch.randn(12, 7, dtype=torch.float64), torch.arange(12) % 3
    kernels = sp.layer_kernels(sp.Network(), x, 6)
    report = kernels.alignment(y)
    target = nn.functional.one_hot(y, 3).double().reshape(-1)
    target = target - target.mean()
    for j, k in enumerate(kernels.tangent()):
        dense = np.kron(k, np.eye(3))
        centered = dense - dense.mean(0) - dense.mean(1)[:, None] + dense.mean()
        norm = np.linalg.norm(centered)
        want = target.numpy() @ dense @ target.numpy() / norm / float(target @ target)
        assert float(report.cka[j]) == pytest.approx(want, rel=1e-10)
        assert float(report.centered_norm[j]) == pytest.approx(norm, rel=1e-10)
        assert float(report.trace[j]) == pytest.approx(np.trace(dense), rel=1e-10)
    np.testing.assert_allclose(kernels.tangent(), kernels.forward * kernels.backward, rtol=1e-10)
    summed = kernels.alignment(y, outputs="trace")
    rows = nn.functional.one_hot(y, 3).double().numpy()
    rows = rows - rows.mean(0)
    for j, k in enumerate(kernels.tangent()):
        centered = 3 * (k - k.mean(0) - k.mean(1)[:, None] + k.mean())
        want = (centered * (rows @ rows.T)).sum() / np.linalg.norm(centered) / np.linalg.norm(rows @ rows.T)
        assert float(summed.cka[j]) == pytest.approx(want, rel=1e-10)
        assert float(summed.centered_norm[j]) == pytest.approx(np.linalg.norm(centered), rel=1e-10)
        assert float(summed.trace[j]) == pytest.approx(3 * np.trace(k), rel=1e-10)


def test_alignment_of_wide_networks_is_near_that_of_the_limit():
    x, y = torch.randn(16, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), torch.arange(16) % 3
    kernels = sp.layer_kernels(sp.Network(), x, 4)
    models = [build(1024, 4, None)(seed) for seed in range(3)]
    for outputs in ("all", "trace"):
        found = torch.stack([ah.layerwise_alignment(model, x, y, outputs=outputs).cka for model in models]).mean(0)
        torch.testing.assert_close(found, kernels.alignment(y, outputs).cka, rtol=0.2, atol=0.01)


def test_alignment_of_one_output_survives_depth():
    x = torch.randn(8, 5, dtype=torch.float64)
    y = torch.randn(8, 1, dtype=torch.float64)
    deep = sp.layer_kernels(sp.Network(), x, 10**6, layers=[10**6]).alignment(y)
    pairs = sp.InputPairs.of_inputs(x)
    gamma = sp.propagate(sp.Network(), pairs, [10**6]).forward_gamma[0]
    scale = np.sqrt(pairs.scales[0] * pairs.scales[1])
    centered = np.asarray((y - y.mean()) / (y - y.mean()).norm())[:, 0]
    kernel = scale * (1 - gamma)
    around = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    want = centered @ around @ centered / np.linalg.norm(around)
    assert float(deep.cka[0]) == pytest.approx(want, rel=1e-6)


def build(width: int, depth: int, branch: float | None):
    class Residual(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, z):
            return z + branch * self.layer(torch.relu(z))

    def network(seed: int) -> nn.Sequential:
        generator = torch.Generator().manual_seed(seed)
        sizes = [9, *[width] * (depth - 1), 3]
        modules: list[nn.Module] = []
        for i, (d, m) in enumerate(pairwise(sizes)):
            layer = nn.Linear(d, m, bias=False, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.normal_(0, math.sqrt(2 / d), generator=generator)
            inner = 0 < i < depth - 1
            if branch and inner:
                modules.append(Residual(layer))
            else:
                modules += [nn.ReLU()] * (i > 0) + [layer]
        return nn.Sequential(*modules)

    return network


def test_means_and_errors_of_finite_width_are_those_of_the_draws():
    """Forward information is that of the inputs, without the bias."""
    networks = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double() for _ in range(5)]
    x = torch.randn(3, 4, dtype=torch.float64)
    found = sp.finite_width(lambda seed: networks[seed], x, draws=5).forward
    inputs = [network[:2](x).detach().numpy() for network in networks]
    draws = np.stack([inner @ inner.T / 6 for inner in inputs])
    np.testing.assert_allclose(found.mean[0], (x @ x.T / 4).numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.mean[1], draws.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.standard_error[1], draws.std(0, ddof=1) / np.sqrt(5), rtol=1e-9)


@pytest.mark.parametrize("branch", [None, 0.5])
def test_finite_width_agrees_with_infinite_width_within_errors(branch):
    x = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = sp.finite_width(build(256, 6, branch), x, draws=24)
    theory = sp.layer_kernels(sp.Network(branch_scale=branch), x, 6)
    for average, expected in ((found.forward, theory.forward), (found.backward, theory.backward)):
        certain = average.standard_error <= 1e-12
        z = (average.mean - expected) / np.where(certain, np.inf, average.standard_error)
        assert np.abs(z).max() < 4
    assert np.abs(found.tangent.mean / theory.tangent() - 1).max() < 0.3
    lost = sp.propagate(sp.Network(branch_scale=branch), sp.InputPairs.of_inputs(x), 6).forward_gamma
    apart = ~np.eye(3, dtype=bool)
    z = (found.forward_loss.mean - lost)[1:, apart] / found.forward_loss.standard_error[1:, apart]
    assert np.abs(z).max() < 4.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sp.InputPairs.of_correlations(1.5), "correlation: expected numbers in"),
        (lambda: sp.InputPairs.of_correlations(math.nan), "correlation: expected finite"),
        (lambda: sp.InputPairs.of_correlations("a"), "correlation: expected real"),
        (lambda: sp.InputPairs(-1e-9), "gamma: expected numbers in"),
        (lambda: sp.InputPairs([0.1], (np.zeros(1), np.ones(1))), "scales: expected numbers above 0"),
        (lambda: sp.InputPairs.apart(1.0), "epsilon: expected"),
        (lambda: sp.InputPairs.of_inputs(np.zeros((2, 3))), "x: expected samples that are not zero"),
        (lambda: sp.InputPairs.of_inputs(np.ones(3)), "x: expected samples"),
        (lambda: sp.Network("rellu"), "activation: expected .* got 'rellu'"),
        (lambda: sp.Network(weight_variance=-1), "weight_variance: expected"),
        (lambda: sp.Network(bias_variance=math.inf), "bias_variance: expected"),
        (lambda: sp.Network(bias_variance=0.1), "bias_variance: expected one at which"),
        (lambda: sp.Network(branch_scale=0.0), "branch_scale: expected"),
        (lambda: sp.Network().correlation_map(-1.01), "correlation: expected"),
        (lambda: sp.Network().variance_fixed_point(), "variance: expected"),
        (lambda: sp.propagate(sp.Network(), sp.InputPairs(0.5), 0), "layers: expected numbers of at least 1"),
        (lambda: sp.propagate(sp.Network(), sp.InputPairs(0.5), [1.5]), "layers: expected whole"),
        (lambda: sp.information_loss(sp.Network(), 0), "depth: expected"),
        (lambda: sp.information_loss(sp.Network(), 5, layers=[6]), "layers: expected numbers from 1 to 5"),
        (lambda: sp.information_loss(sp.Network(), 5, over="max"), "over: expected"),
        (lambda: sp.equilibrium(sp.Network(), [10, 0]), "depth: expected"),
        (lambda: sp.asymptotics(sp.Network("linear")), "network: expected"),
        (lambda: sp.layer_kernels(sp.Network(), np.full((2, 2), np.nan), 3), "x: expected finite"),
        (lambda: sp.finite_width(lambda seed: nn.Linear(2, 2), torch.ones(2, 2), draws=1), "draws: expected"),
        (lambda: sp.layer_kernels(sp.Network(), np.eye(2), 2).alignment(np.arange(2), "sum"), "outputs: expected"),
        (lambda: sp.InputPairs([0.5], (1.0,)), "scales: expected a tuple of two"),
        (lambda: sp.InputPairs.of_correlations(0.5, "a"), "scale: expected real numbers"),
        (lambda: sp.InputPairs.apart("a"), "epsilon: expected a finite number in"),
        (lambda: sp.Network(branch_scale="a"), "branch_scale: expected .* got 'a'"),
        (lambda: sp.Network(bias_variance=None), "bias_variance: expected .* got None"),
        (
            lambda: sp.Network(sp.Smooth(np.sum), 1.0).correlation_map(0.5, 1.0),
            "activation: expected .* keeps the shape",
        ),
        (lambda: sp.finite_width(lambda seed: nn.Linear(2, 2), torch.ones(2, 2), 2, "a"), "seed: expected a whole"),
        (lambda: sp.fit_power_law([1, 2], [1, 2]), "x: expected at least 3"),
        (lambda: sp.fit_power_law([1, 2, 0], [1, 2, 3]), "x: expected numbers above 0"),
        (lambda: sp.Network(sp.Smooth(np.abs), 1.0).correlation_map(0.5, 1.0), "activation: expected a smooth"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sp.propagate("relu", sp.InputPairs(0.5), 3),
            r"network: expected a Network, such as Network\('relu'\)",
        ),
        (lambda: sp.asymptotics("relu"), "network: expected a Network"),
        (lambda: sp.propagate(sp.Network(), [0.5], 3), "pairs: expected InputPairs, got list"),
        (lambda: sp.Smooth("tanh"), "function: expected a function of an array, got str"),
        (lambda: sp.finite_width(nn.Linear(2, 2), torch.ones(2, 2)), "build: expected a function .* got Linear"),
        (lambda: sp.fit_power_law([1, 2, 3], [1, 2, 3], 5), "corrections: expected a sequence of columns, got int"),
    ],
)
def test_wrong_types_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_undefined_alignments_are_nan_with_a_warning():
    kernels = sp.layer_kernels(sp.Network(), np.eye(3), 2)
    with pytest.warns(ah.DegenerateKernelWarning, match="y is the same in all rows"):
        assert kernels.alignment(torch.zeros(3, dtype=torch.long)).cka.isnan().all()
    with pytest.warns(ah.DegenerateKernelWarning, match="kernel of layer 'layer1' is constant"):
        alike = sp.layer_kernels(sp.Network(), np.ones((3, 2)), 1)
        assert alike.alignment(torch.rand(3, 1)).cka.isnan().all()


def test_variances_out_of_range_are_named():
    with pytest.raises(ValueError, match="network: expected variances"):
        sp.propagate(sp.Network("relu", weight_variance=40.0, bias_variance=1.0), sp.InputPairs(0.5), 2000)
