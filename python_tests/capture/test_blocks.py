"""A layer with a rule that fits no route: K from pairs of blocks of samples, of which a root is kept."""

from __future__ import annotations

from dataclasses import replace

import networks
import pytest
import reference
import torch
from torch import nn

import ahkernels as ah
from ahkernels.capture import memory, plan, run
from ahkernels.capture.blocks import add_kernel
from ahkernels.capture.route import _or_root, routes

ROUTES = ["pairs", "jacobian", "jacobian slices"]
STATISTICS = ("forward_cka", "backward_cka")


class Tokens(nn.Module):
    """Linear layers and a norm with positions, on vectors [n, t, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 9), nn.LayerNorm(9), nn.Linear(9, 6, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.down(self.norm(torch.tanh(self.up(x))))).mean(1))


def convolutions():
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 5, 3, bias=False), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(5 * 16, 3))


def sequences():
    layers = [nn.Conv1d(2, 6, 3), nn.Tanh(), nn.Conv1d(6, 4, 3, stride=2, groups=2), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * 6, 3))


def wide_convolutions():
    """Neither factors nor Jacobians of 40 samples fit BUDGET, but a root of K [40, 40] does."""
    layers = [nn.Conv2d(2, 24, 3, padding=1), nn.Tanh(), nn.Conv2d(24, 24, 3, bias=False), nn.Tanh()]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(24, 3))


BUDGET = 10 * 4 * 40**2
NETWORKS = {"conv2d": (convolutions, (2, 6, 6)), "conv1d": (sequences, (2, 15)), "linear": (Tokens, (5, 4))}


@pytest.fixture
def in_blocks(monkeypatch):
    """All layers with a rule take a route for blocks of five samples and the parts after them of two."""

    def by(route):
        def only(shape, most_numbers, budget, **_):
            found = {one.name: one for one in routes(shape)}
            of_parts = found.get(route, next(iter(found.values())))
            return _or_root(of_parts, shape.n * shape.r, 1 << 60)

        def blocks(self, layer):
            for block in memory._cut(self.samples, 5):
                yield block, memory._cut(slice(block.stop, self.n), 2)

        monkeypatch.setattr(plan, "choose_route", only)
        monkeypatch.setattr(memory.Memory, "blocks", blocks)

    return by


@pytest.mark.parametrize("outputs", ["all", "trace", "sum", 1])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("n", "dtype"), [(1, torch.float64), (5, torch.float64), (13, torch.float64), (13, torch.float32)]
)
def test_kernels_in_blocks_are_the_kernels(name, route, outputs, n, dtype, in_blocks):
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model, x = build().to(dtype), torch.randn(n, *shape, dtype=dtype)
    jacobians = reference.jacobians(model.double(), x.double())
    model.to(dtype)
    in_blocks(route)
    assert {one.route for one in ah.explain(model, x, outputs=outputs)} == {"root"}
    for layer, kernel in ah.tangent_kernels(model, x, outputs=outputs).items():
        expected = reference.kernels_of_outputs(jacobians[layer], outputs)
        tolerance = 1e-12 if dtype == torch.float64 else 2e-6
        assert (kernel.to_dense() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.filterwarnings("ignore:.*Gram.* is constant")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", NETWORKS)
def test_statistics_of_layers_in_blocks(name, route, in_blocks):
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model, x, y = build().double(), torch.randn(12, *shape, dtype=torch.float64), torch.arange(12) % 3
    expected = ah.layerwise_alignment(model, x, y, statistics=STATISTICS)
    in_blocks(route)
    found = ah.layerwise_alignment(model, x, y, statistics=STATISTICS, certify=1)
    assert found.layers == expected.layers
    for statistic, values in expected.statistics.items():
        torch.testing.assert_close(found.statistics[statistic], values, rtol=1e-10, atol=1e-10, equal_nan=True)
    differences = found.certificate.differences
    assert found.certificate.calls_ago == 0 and list(differences) == found.layers
    assert max(differences.values()) < 1e-12


def test_near_constant_kernels_keep_their_digits(in_blocks):
    torch.manual_seed(0)
    model, x, y = Tokens(), torch.ones(12, 5, 4) + 1e-3 * torch.randn(12, 5, 4), torch.arange(12) % 3
    expected = ah.layerwise_alignment(model.double(), x.double(), y)
    in_blocks("pairs")
    found = ah.layerwise_alignment(model.float(), x, y)
    torch.testing.assert_close(found.cka, expected.cka, rtol=2e-3, atol=2e-4)


@pytest.mark.filterwarnings("ignore:.*Gram.* is constant")
def test_small_budgets_take_blocks():
    torch.manual_seed(0)
    model, x, y = wide_convolutions(), torch.randn(40, 2, 6, 6), torch.arange(40) % 3
    expected = ah.layerwise_alignment(model, x, y, outputs="sum", statistics=STATISTICS)
    explained = ah.explain(model, x, outputs="sum", memory_budget=BUDGET)
    assert [one.route for one in explained] == ["root", "root", "factors"]
    assert [one.bytes for one in explained[:2]] == [4 * 40**2] * 2
    assert explained.peak_bytes < 2 * BUDGET  # a single sample takes more than a quarter of it
    found = ah.layerwise_alignment(model, x, y, outputs="sum", memory_budget=BUDGET, statistics=STATISTICS)
    for statistic, values in expected.statistics.items():
        torch.testing.assert_close(found.statistics[statistic], values, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_blocks_cover_every_pair_of_samples_once():
    model, x = wide_convolutions(), torch.randn(40, 2, 6, 6)
    found = plan.plan_capture(model, x, ah.CaptureOptions(outputs="sum", memory_budget=BUDGET))
    layer = found.layers["0"]
    pairs = torch.zeros(40, 40)
    for rows, later in found.memory.blocks(layer):
        of_both = max(one.stop - one.start for one in (*later, slice(0, 0))) + rows.stop - rows.start
        assert of_both * found.memory.kept_of([layer.of_block]) / 40 + 8 * 40**2 <= found.memory.kept
        for columns in (rows, *later):
            pairs[rows, columns] += 1
    assert torch.equal(pairs.triu(), torch.ones(40, 40).triu()) and pairs.max() == 1


@pytest.mark.parametrize("sample", [0, 7, 12])
@pytest.mark.parametrize("layer", ["up", "norm", "down", "head"])
def test_a_fault_in_any_block_is_found(layer, sample, in_blocks, monkeypatch):
    torch.manual_seed(0)
    model, x = Tokens().double(), torch.randn(13, 5, 4, dtype=torch.float64)
    expected, right = ah.tangent_kernels(model, x), run.factors_of
    wrong = model(x[[sample]])

    def faulty(call, planned, *rest):
        a, g = right(call, planned, *rest)
        if planned.name != layer:
            return a, g
        concerned = torch.isclose(call.output, wrong).all(1)
        return a, torch.where(concerned[:, None, None], 1.01 * g, g)

    in_blocks("pairs")
    monkeypatch.setattr(run, "factors_of", faulty)
    found = ah.tangent_kernels(model, x, certify=1)
    explained = {one.layer: one.route for one in ah.explain(model, x, certify=1)}
    for name, kernel in found.items():
        k = expected[name].to_dense()
        assert (kernel.to_dense() - k).norm() <= 1e-10 * k.norm()
        assert explained[name] == ("fallback" if name == layer else "root")


def test_a_layer_in_blocks_that_does_not_reach_the_output(in_blocks):
    model = networks.mlp(3, 6, 4, 3, bias=True)
    model.append(nn.Linear(3, 3))
    model.forward = lambda x: nn.Sequential.forward(model[:-1], x)
    in_blocks("pairs")
    with pytest.warns(ah.DegenerateKernelWarning, match="the output does not depend on it") as warned:
        found = ah.tangent_kernels(model, torch.randn(13, 4))
    assert len(warned) == 1 and found["5"].trace() == 0


def test_groups_with_layers_in_blocks(in_blocks):
    torch.manual_seed(0)
    model, x = Tokens().double(), torch.randn(13, 5, 4, dtype=torch.float64)
    groups = {"first": ["up", "norm"], "all": ["up", "norm", "down", "head"]}
    expected = ah.tangent_kernels(model, x, layers=groups)
    in_blocks("jacobian slices")
    for name, kernel in ah.tangent_kernels(model, x, layers=groups).items():
        k = expected[name].to_dense()
        assert (kernel.to_dense() - k).norm() <= 1e-12 * k.norm()


def test_factors_that_are_asked_for_are_kept():
    model, x = wide_convolutions(), torch.randn(40, 2, 6, 6)
    assert not ah.tangent_kernels(model, x, outputs="sum", memory_budget=BUDGET)["0"].factored
    kept = ah.tangent_kernels(model, x, outputs="sum", memory_budget=BUDGET, keep_factors=True)
    assert all(kernel.factored for kernel in kept.values())
    words = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(8 * 30, 1))
    explained = ah.explain(words, torch.randint(50, (40, 30)), memory_budget=BUDGET)
    assert explained[0].route in ("pairs", "jacobian slices")  # blocks would have one-hot vectors of different words


def test_a_root_has_no_parameters(in_blocks):
    torch.manual_seed(0)
    model, x = Tokens(), torch.randn(13, 5, 4)
    in_blocks("pairs")
    kernel, other = (ah.tangent_kernels(model, x)["up"] for _ in range(2))
    with pytest.raises(ValueError, match="a square root of its kernel"):
        kernel.vjp(torch.ones(39))
    with pytest.raises(ValueError, match="a square root of its kernel"):
        kernel.jvp(torch.ones(45))
    with pytest.raises(ValueError, match="square roots of different kernels"):
        ah.CrossKernel(kernel, other)
    some = torch.tensor([3, 1])
    cross = ah.CrossKernel(kernel, kernel.subset(some)).to_dense().view(39, 2, 3)
    torch.testing.assert_close(cross, kernel.to_dense().view(39, 13, 3)[:, some])


@pytest.mark.parametrize("work", [1, 3000, 1 << 24])
@pytest.mark.parametrize("by_jacobian", [False, True])
@pytest.mark.parametrize(("s", "bias"), [(1, True), (4, False), (4, True)])
def test_any_workspace_gives_the_same(s, bias, by_jacobian, work):
    a, g = reference.factors(9, s, 3, 7, 6, torch.float32)
    factors = ah.LayerFactors(a, g, bias, by_jacobian=by_jacobian and s > 1)
    parts = [replace(factors, forward=a[part], backward=g[part]) for part in (slice(0, 4), slice(4, 9))]
    found = torch.zeros(12, 15, dtype=torch.float64)
    add_kernel(found, *parts, work)
    expected = reference.kernel(a, g, float(bias))[:12, 12:]
    assert (found - expected).norm() <= (1e-6 if factors.by_jacobian else 1e-14) * expected.norm()
