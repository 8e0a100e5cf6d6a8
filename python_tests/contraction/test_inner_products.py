"""Inner products with outputs or parameters contracted first, against dense kernels in fp64."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from torch import nn

import ahkernels as ah
from ahkernels.contraction import best_order, order, outputs_first, parameters_first
from ahkernels.contraction.order import LayerShape, flops, order_of
from ahkernels.ops import KernelBatch
from ahkernels.samples import Samples
from ahkernels.statistics.cka import cka

CENTERINGS = ("global", "per_output")
ORDERS = [outputs_first, parameters_first]
# Layers (s, d, m, bias), each kernel of one or of several.
ONE = [(1, 5, 7, True)]
SHAPES = [
    (9, 3, ONE),
    (1, 4, ONE),
    (6, 2, [(1, 5, 1, False)]),
    (13, 11, [(1, 3, 2, True)]),
    (7, 5, [(1, 4, 70, False)]),
    (8, 3, [(1, 0, 6, True)]),
    (5, 4, [(1, 5, 7, True), (1, 2, 3, False), (1, 0, 4, True)]),
    (40, 3, [(1, 6, 9, True), (1, 9, 5, True)]),
]
NAMES = [f"n{n}-o{o}-{'+'.join('x'.join(map(str, one[:3])) for one in layers)}" for n, o, layers in SHAPES]


def factors(n, o, layers, dtype=torch.float64, spread=None, scale=1.0):
    """Factors of layers; with a spread, all samples are within that of one another, relative to their size."""
    found = []
    for seed, (s, d, m, bias) in enumerate(layers):
        a, g = reference.factors(n, s, o, d, m, torch.float64, seed)
        if spread is not None:
            a, g = a[:1] + spread * a, g[:1] + spread * g
        found.append(ah.LayerFactors((a * scale).to(dtype), (g * scale).to(dtype), bias))
    return found


def dense(layers):
    return sum(reference.kernel(one.forward, one.backward, float(one.bias)) for one in layers)


def expected(layers):
    k, o = dense(layers), layers[0].o
    return {one: float(reference.centered(k, one, o).square().sum()) for one in (None, *CENTERINGS)}


def check(found, layers, tolerance):
    wanted = expected(layers)
    assert set(found) == set(wanted)
    for one, square in wanted.items():
        assert found[one] == pytest.approx(square, rel=tolerance, abs=1e-12 * wanted[None]), one


def squared_norms(route, layers, dtype):
    """||C K C||^2 of one kernel, the sum of some layers."""
    kernel = ah.TangentKernel(layers)
    found = route.inner_products(kernel.batch, CENTERINGS, dtype, kernel.samples)
    return {one: float(products) for one, products in found.items()}


@pytest.fixture
def small_pieces(monkeypatch):
    """Every loop takes several turns."""
    for name, value in (("_NUMBERS", 60), ("_NUMBERS_IN_CACHE", 40), ("_WIDTH", 3), ("_BLOCK", 5), ("_SAMPLES", 3)):
        monkeypatch.setattr(outputs_first, name, value)
    monkeypatch.setattr(outputs_first, "_OUTPUTS", 2)
    monkeypatch.setattr(outputs_first, "_OTHER_OUTPUTS", 4)
    monkeypatch.setattr(parameters_first, "_NUMBERS", 100)


@pytest.mark.parametrize("route", ORDERS)
@pytest.mark.parametrize(("n", "o", "layers"), SHAPES, ids=NAMES)
def test_against_dense_kernels(route, n, o, layers):
    own = factors(n, o, layers)
    check(squared_norms(route, own, torch.float64), own, 1e-10)


@pytest.mark.parametrize("route", ORDERS)
@pytest.mark.parametrize(("n", "o", "layers"), SHAPES, ids=NAMES)
def test_in_small_pieces(route, n, o, layers, small_pieces):
    own = factors(n, o, layers)
    check(squared_norms(route, own, torch.float64), own, 1e-10)


def of_several(route, kernels, tolerance, dtype=torch.float64):
    """Checks all inner products of kernels, each the sum of some layers."""
    batch = KernelBatch.of(kernels)
    found = route.inner_products(batch, CENTERINGS, dtype, Samples(batch.n))
    assert set(found) == {None, *CENTERINGS}
    for one, products in found.items():
        centered = [reference.centered(dense(layers), one, batch.o) for layers in kernels]
        norms = [float(k.norm()) for k in centered]
        for i, first in enumerate(centered):
            for j, second in enumerate(centered):
                assert float(products[i, j]) == pytest.approx(
                    float((first * second).sum()), rel=tolerance, abs=tolerance * norms[i] * norms[j]
                )


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("route", ORDERS)
def test_several_kernels(route, pieces, request):
    if pieces:
        request.getfixturevalue("small_pieces")
    kernels = [
        factors(9, 4, [(1, 5, 7, True)]),
        factors(9, 4, [(1, 3, 2, False), (1, 6, 5, True)], scale=30.0),
        factors(9, 4, [(1, 0, 3, True)], scale=1e-3),
    ]
    of_several(route, kernels, 1e-10)


@pytest.mark.parametrize("route", ORDERS)
def test_kernels_of_different_scales(route):
    kernels = [factors(12, 4, ONE, torch.float32, scale=scale) for scale in (1e-9, 1.0, 1e9)]
    of_several(route, kernels, 1e-6, torch.float32)


@pytest.mark.parametrize("layers", [[(3, 4, 5, True)], [(2, 4, 5, False), (1, 3, 6, True)]])
@pytest.mark.parametrize("by_jacobian", [False, True])
def test_parameters_first_with_several_positions(layers, by_jacobian):
    own = [
        ah.LayerFactors(one.forward, one.backward, one.bias, by_jacobian=by_jacobian) for one in factors(6, 3, layers)
    ]
    check(squared_norms(parameters_first, own, torch.float64), own, 1e-10)


@pytest.mark.parametrize("route", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_float32(route, dtype):
    own = factors(30, 6, [(1, 20, 40, True)], dtype)
    check(squared_norms(route, own, torch.float32), own, 1e-6)


@pytest.mark.parametrize("route", ORDERS)
@pytest.mark.parametrize("scale", [1e-18, 1e-12, 1e12, 1e18])
def test_extreme_scales(route, scale):
    """Squares of numbers in float32 would overflow or vanish."""
    own = factors(12, 4, ONE, torch.float32, scale=scale)
    check(squared_norms(route, own, torch.float32), own, 1e-6)


@pytest.mark.parametrize("route", ORDERS)
def test_layers_of_different_scales(route):
    first, second = (factors(12, 4, ONE, torch.float32, scale=scale)[0] for scale in (1e-9, 1e3))
    own = [first, second]
    check(squared_norms(route, own, torch.float32), own, 1e-6)


@pytest.mark.parametrize("route", ORDERS)
def test_any_strides_and_nothing_is_changed(route):
    (own,) = factors(9, 4, [(1, 6, 5, True)])
    a, g = own.forward.clone(), own.backward.clone()
    strided = ah.LayerFactors(
        a.permute(2, 1, 0).contiguous().permute(2, 1, 0), g.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0), True
    )
    expanded = ah.LayerFactors(a[:1].expand(9, 1, 6), g[:, :, :1].expand(9, 1, 4, 5), True)
    for layer in (strided, expanded):
        before = layer.forward.clone(), layer.backward.clone()
        check(squared_norms(route, [layer], torch.float64), [layer], 1e-10)
        assert torch.equal(layer.forward, before[0]) and torch.equal(layer.backward, before[1])


@pytest.mark.parametrize("route", ORDERS)
def test_zero_kernels(route):
    own = [ah.LayerFactors(torch.zeros(5, 1, 3), torch.zeros(5, 1, 2, 4), True)]
    found = squared_norms(route, own, torch.float32)
    assert set(found.values()) == {0.0}


# ---- the choice


@pytest.fixture
def always(monkeypatch):
    """Has an order taken at any size."""

    def set_order(wanted):
        monkeypatch.setattr(best_order, "order_of", lambda *_, **__: wanted)

    return set_order


@pytest.mark.parametrize("wanted", ["outputs first", "parameters first"])
@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-2, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_near_constant_kernels_keep_what_the_precision_promises(wanted, spread, precision, always):
    """Where too few digits would be left, more are taken, or tiles."""
    always(wanted)
    own = factors(24, 5, [(1, 12, 9, True)], torch.float32, spread=spread)
    kernel, k = ah.TangentKernel(own, precision=precision), dense(own)
    for one in CENTERINGS:
        norm = float(reference.centered(k, one, 5).norm())
        tolerance = {"highest": 1e-6, "high": 1e-5, "medium": 1e-3}[precision]
        if one == "per_output" and spread < 1e-6:  # factors in float32 have no more digits of it
            tolerance = 2e-2
        assert kernel.frobenius_norm(centering=one) == pytest.approx(norm, rel=tolerance)


def test_a_constant_kernel_is_left_to_tiles(always):
    always("outputs first")
    kernel = ah.TangentKernel(ah.LayerFactors(torch.ones(6, 1, 3), torch.ones(6, 1, 2, 4), True))
    assert best_order.inner_products(kernel.batch, CENTERINGS, "highest") is None


@pytest.mark.parametrize("wanted", ["outputs first", "parameters first"])
@pytest.mark.parametrize("centering", ["global", "per_output", CENTERINGS])
def test_reports_are_those_of_tiles(wanted, centering, always):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 7)).double()
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.randint(0, 7, (30,))
    options = {"centering": centering, "statistics": ["stable_rank", "label_correlation"]}
    by_tiles = ah.layerwise_alignment(model, x, y, **options)
    always(wanted)
    found = ah.layerwise_alignment(model, x, y, **options)
    pairs = [(found, by_tiles)] if isinstance(centering, str) else [(found[one], by_tiles[one]) for one in CENTERINGS]
    for one, other in pairs:
        for name in other.statistics:
            torch.testing.assert_close(one.statistics[name], other.statistics[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wanted", ["outputs first", "parameters first"])
@pytest.mark.parametrize("centering", CENTERINGS)
def test_similarity_is_that_of_tiles(wanted, centering, always):
    kernels = [ah.TangentKernel(factors(30, 5, [(1, 6 + i, 4 + i, True)], torch.float32)) for i in range(3)]
    by_tiles = ah.similarity(kernels, centering=centering), ah.cka(kernels[0], kernels[1], centering=centering)
    always(wanted)
    found = ah.similarity(kernels, centering=centering), ah.cka(kernels[0], kernels[1], centering=centering)
    torch.testing.assert_close(found[0], by_tiles[0], rtol=1e-6, atol=1e-6)
    assert found[1] == pytest.approx(by_tiles[1], rel=1e-5)
    assert found[1] == float(found[0][0, 1])


def test_kernels_of_one_op_in_different_orders(monkeypatch):
    """Some of the layers of a report go by tiles, and each keeps its place."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randint(0, 6, (20,))
    expected_report = ah.layerwise_alignment(model, x, y)
    monkeypatch.setattr(
        best_order, "order_of", lambda n, o, layers, **_: "tiles" if layers[0].m == 8 else "outputs first"
    )
    found = ah.layerwise_alignment(model, x, y)
    for name in expected_report.statistics:
        torch.testing.assert_close(found.statistics[name], expected_report.statistics[name], rtol=1e-9, atol=0)


def test_nan_is_named(always):
    always("outputs first")
    a, g = reference.factors(6, 1, 3, 4, 5)
    g[0, 0, 0, 0] = math.nan
    kernel = ah.TangentKernel(ah.LayerFactors(a, g, True, "fc", unchecked=True))
    with pytest.raises(ah.NonFiniteError, match="'fc'"):
        cka(kernel, torch.arange(6) % 3)


def test_order_of_shapes():
    wide = [LayerShape(1, 256, 256, True)]
    assert order_of(256, 10, wide) == order_of(1000, 10, wide) == "tiles"
    assert order_of(256, 100, wide) == order_of(1000, 100, wide) == "outputs first"
    assert order_of(128, 1000, [LayerShape(1, 512, 512, True)], by_output=True) == "outputs first"
    assert order_of(60_000, 10, [LayerShape(1, 8, 8, True)]) == "parameters first"
    assert order_of(60_000, 10, [LayerShape(9, 8, 8, True)]) == "parameters first"
    assert order_of(10_000, 10, [LayerShape(1, 256, 10, True)]) == "outputs first"
    assert order_of(8, 100, wide) == "tiles"  # too small to be worth it
    assert order_of(1000, 1, [LayerShape(1, 8, 8, True)]) == "tiles"
    assert order_of(256, 100, [LayerShape(4, 256, 256, True)]) == "tiles"  # several positions, and many parameters


def test_a_matrix_over_parameters_has_no_more_than_4096_rows():
    """However cheap it would be beside tiles of a layer with several positions."""
    assert order_of(100_000, 10, [LayerShape(2, 0, 4096, True)]) == "parameters first"
    assert order_of(100_000, 10, [LayerShape(2, 0, 4097, True)]) == "tiles"


def test_flops_are_those_of_the_formulas():
    counts = flops(50, 20, [LayerShape(1, 6, 4, True)])
    assert counts["tiles"] == 50**2 * (6 + 20**2 * 4)
    assert counts["outputs first"] == 4 * 4 * (50**2 / 2 + 50 * 20) + 50**2 * 6
    assert order._GAIN < 1
    more = flops(50, 20, [LayerShape(1, 6, 4, True)], by_output=True)
    assert more["outputs first"] > counts["outputs first"] and more["tiles"] == counts["tiles"]


def test_explain_shows_the_order():
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 300))
    found = {one.layer: one for one in ah.explain(model, torch.randn(200, 20))}
    assert found["0"].order == "outputs first"
    assert found["0"].flops == round(flops(200, 300, [LayerShape(1, 20, 64, True)])["outputs first"])
    by_trace = ah.explain(model, torch.randn(200, 20), outputs="trace")
    assert [one.order for one in by_trace] == ["tiles", "tiles"]


def test_the_order_is_the_one_explained(monkeypatch):
    calls = []
    true = outputs_first.inner_products
    monkeypatch.setattr(outputs_first, "inner_products", lambda *args: calls.append(args) or true(*args))
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 300))
    x = torch.randn(200, 20)
    ah.layerwise_alignment(model, x, torch.arange(200), layers=["0"])
    assert calls


def test_sum_of_diagonal_blocks(monkeypatch):
    own = factors(9, 7, [(1, 5, 4, True), (2, 3, 6, False)])
    kernel, k = ah.TangentKernel(own), dense(own).view(9, 7, 9, 7)
    wanted = float(sum(k[:, i, :, i].sum() for i in range(7)))
    assert float(kernel.sum_of_diagonal_blocks()) == pytest.approx(wanted, rel=1e-12)
    monkeypatch.setattr("ahkernels.kernel._NUMBERS_JOINED", 1)
    assert float(kernel.sum_of_diagonal_blocks()) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("wanted", ["outputs first", "parameters first"])
def test_regions_and_settings_of_torch_round_nothing(wanted, always, monkeypatch):
    """Autocast around a measurement, and a coarser precision of torch's own products, leave the numbers as they are."""
    always(wanted)
    kernel = ah.TangentKernel(factors(30, 6, [(1, 40, 50, True)], torch.float32), precision="highest")
    norm = kernel.frobenius_norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernel.frobenius_norm() == norm
    dtypes = []
    for route in ORDERS:
        true = route.inner_products
        monkeypatch.setattr(route, "inner_products", lambda *args, true=true: dtypes.append(args[2]) or true(*args))
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        assert kernel.frobenius_norm() == pytest.approx(norm, rel=1e-7)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert dtypes == [torch.float64]
