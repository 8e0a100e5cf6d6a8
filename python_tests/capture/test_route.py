"""Routes to the kernel of a layer with several positions: all give the same, and the cheapest that fits is taken."""

from __future__ import annotations

import networks
import pytest
import reference
import torch

import ahkernels as ah
from ahkernels.capture import plan
from ahkernels.capture.route import Shape, choose_route, routes


@pytest.mark.parametrize("outputs", ["all", "trace", "sum"])
@pytest.mark.parametrize("route", ["pairs", "jacobian", "jacobian slices"])
@pytest.mark.parametrize("name", ["convolutional", "tokens", "volume", "shared with bias"])
def test_every_route_of_layers_with_positions(name, route, outputs, monkeypatch):
    model = networks.all_networks()[name].double()
    x, y = torch.randn(12, 6, dtype=torch.float64), torch.randint(0, 2, (12,))
    jacobians = reference.jacobians(model, x)

    def only(shape, *_, **__):
        found = routes(shape)
        return found[0] if len(found) == 1 else next(one for one in found if one.name == route)

    monkeypatch.setattr(plan, "choose_route", only)
    assert route in {one.route for one in ah.explain(model, x)}
    reports = ah.layerwise_alignment(model, x, y, outputs=outputs, centering=("global", "per_output"))
    total = model(x).shape[1]
    labels, o = reference.label_kernel(y, total, outputs), total if outputs == "all" else 1
    for layer, kernel in ah.tangent_kernels(model, x, outputs=outputs).items():
        expected = reference.kernels_of_outputs(jacobians[layer], outputs)
        assert (kernel.to_dense() - expected).norm() <= 1e-10 * expected.norm()
        assert kernel.trace() == pytest.approx(float(expected.trace()), rel=1e-10)
        for centering, report in reports.items():
            alignment = reference.cka(expected, labels, centering, o)
            assert report[layer] == pytest.approx(alignment, rel=1e-10, abs=1e-10)
            assert ah.cka(kernel, y, centering=centering) == pytest.approx(alignment, rel=1e-10, abs=1e-10)


def test_the_route_is_the_cheapest_that_fits():
    def choice(n, s, d, m, most_numbers=1 << 40, budget=1 << 40, keep_factors=False):
        shape = Shape(n, 10, 100, s, d, m, bias=False)
        return choose_route(shape, most_numbers, budget, keep_factors=keep_factors).name

    assert choice(1000, 1, 256, 256) == "factors"  # one position
    assert choice(1000, 4, 256, 256) == "pairs"  # 16 pairs against 256 numbers for each of m
    assert choice(1000, 1024, 27, 64) == "jacobian"  # a convolution on an image
    assert choice(1000, 1024, 27, 64, keep_factors=True) == "jacobian slices"
    assert choice(128, 64, 2304, 256) == "jacobian slices"  # formed once, too, since K is one block
    assert choice(128, 1024, 27, 64) == "jacobian"  # which has fewer numbers than the factors
    assert choice(1000, 64, 2304, 256) == "jacobian"
    assert choice(1000, 64, 2304, 256, 1 << 29) == "jacobian slices"  # 5.9e9 numbers, in factors 0.3e9
    assert choice(1000, 1024, 27, 64, 1) == "root"  # K has fewer numbers than that
    assert choice(1000, 1024, 27, 64, 1, keep_factors=True) == "jacobian slices"
    assert choice(1000, 1024, 27, 64, 1, 1) == "jacobian"  # the one that holds least
