"""Both centerings wherever there is a choice: against Jacobians centered in fp64, near constant, on every route."""

from __future__ import annotations

import math
import sys
import warnings

import networks
import pytest
import reference
import torch
from batches import kernels, one_layer
from torch import Tensor

import ahkernels as ah
from ahkernels import ops
from ahkernels.ops import plain
from benchmarks.common import memory

BOTH = ("global", "per_output")
OUTPUTS = ["all", "trace", "sum", 0, "last and first"]
IMPLEMENTATIONS = [pytest.param(ops, id="kernels"), pytest.param(plain, id="plain torch")]


def rows_of(features: Tensor, outputs: object) -> Tensor:
    """Tangent features [n, r, P] whose rows are those of the kernel, for kernels over samples and outputs."""
    if outputs == "sum":
        return features.sum(1, keepdim=True)
    return features if outputs == "all" else features[:, [outputs] if isinstance(outputs, int) else list(outputs)]


@pytest.mark.parametrize("outputs", OUTPUTS, ids=str)
@pytest.mark.parametrize("name", [*networks.all_networks(), *networks.networks_without_rules()])
def test_against_jacobians_that_are_centered(name, outputs):
    """Alignment, norm, trace; the reference centers Jacobians, never K."""
    if name in networks.all_networks():
        model, layers = networks.all_networks()[name].double(), None
    else:
        model, layers = networks.networks_without_rules()[name]
        model = model.double().eval()
    x = torch.randint(0, 9, (7, 4)) if name == "words" else torch.randn(7, 6, dtype=torch.float64)
    o = model(x).shape[1]
    spec = (o - 1, 0) if outputs == "last and first" and o > 1 else 0 if outputs == "last and first" else outputs
    y = torch.randint(0, o, (7,))
    one_hot = torch.nn.functional.one_hot(y, o).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ah.DegenerateKernelWarning)
        reports = ah.layerwise_alignment(model, x, y, outputs=spec, centering=BOTH)
        single = {one: ah.layerwise_alignment(model, x, y, outputs=spec, centering=one) for one in BOTH}
    assert list(reports) == list(BOTH) and [report.centering for report in reports.values()] == list(BOTH)
    for layer, features in reference.jacobians(model, x, layers).items():
        for centering, report in reports.items():
            index = report.layers.index(layer)
            if spec == "trace":
                psi = features - features.mean(0)
                k, labels = torch.einsum("xip,yip->xy", psi, psi), reference.centered_features(one_hot, "per_output")
                label_kernel = labels @ labels.T
            else:
                psi = reference.centered_features(rows_of(features, spec), centering).flatten(0, 1)
                k = psi @ psi.T
                targets = one_hot if spec == "sum" else rows_of(one_hot[..., None], spec)[..., 0]
                labels = reference.centered_features(targets, "per_output" if spec == "sum" else centering)
                label_kernel = labels @ labels.T if spec == "sum" else torch.outer(labels.flatten(), labels.flatten())
            if k.norm() <= 1e-12 * float(report.trace[index]) or label_kernel.norm() < 1e-12:
                assert math.isnan(report[layer])
                continue
            assert float(report.centered_norm[index]) == pytest.approx(float(k.norm()), rel=1e-10)
            expected = float((k * label_kernel).sum() / k.norm() / label_kernel.norm())
            assert report[layer] == pytest.approx(expected, rel=1e-9, abs=1e-10)
            assert single[centering][layer] == pytest.approx(report[layer], rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize(
    ("n", "s", "by_jacobian"), [(200, 1, False), (64, 1, False), (60, 3, False), (60, 3, True), (20, 9, False)]
)
def test_blocks_close_to_constant_keep_their_digits(n, s, by_jacobian, spread):
    """fp32 at given factors against fp64 of the same, each block within `spread` of constant or closer."""
    generator = torch.Generator().manual_seed(0)

    def factor(*shape: int) -> Tensor:
        mean = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        return (mean + spread * torch.randn(n, *shape, generator=generator, dtype=torch.float64)).float()

    a, g = factor(s, 30), factor(s, 10, 40)
    j = torch.einsum("xsim,xsd->ximd", g.double(), a.double()).flatten(2)
    v = torch.randn(n, 10, 1, generator=generator, dtype=torch.float64)
    v -= v.mean()
    batch = one_layer(a, g, 0.0, by_jacobian)
    found = ops.tangent_moments(batch, v, "highest", per_output=True)
    products = ops.per_output_inner_products(batch, "highest")[:, 0, 0]
    for centering, (form, square, _, _), product in zip(BOTH, found, products, strict=True):
        psi = reference.centered_features(j, centering).flatten(0, 1)
        labels = reference.centered_features(v[..., 0], centering).flatten()
        exact = float((psi @ psi.T).square().sum())
        assert float(square) == pytest.approx(exact, rel=1e-5)
        assert float(product) == pytest.approx(exact, rel=1e-5)
        assert float(form) == pytest.approx(float((psi.T @ labels).square().sum()), rel=1e-5)


def test_fp32_kernels_of_a_deep_network():
    """Depth and width 100, ten outputs, at given factors: blocks close to constant, and a closer one yet."""
    model = networks.mlp(100, 100, 30, 10, bias=False)
    x, y = torch.randn(30) + 0.02 * torch.randn(60, 30), torch.randint(0, 10, (60,))
    one_hot = torch.nn.functional.one_hot(y, 10).double()
    for kernel in ah.tangent_kernels(model, x, layers=[f"{i}" for i in range(0, 199, 22)]).values():
        (one,) = kernel.factors
        j = torch.einsum("xsim,xsd->ximd", one.backward.double(), one.forward.double()).flatten(2)
        for centering in BOTH:
            expected = reference.cka_of_features(j, one_hot, centering)
            assert ah.cka(kernel, y, centering=centering) == pytest.approx(expected, rel=1e-5)
            norm = (psi := reference.centered_features(j, centering).flatten(0, 1)) @ psi.T
            assert kernel.frobenius_norm(centering=centering) == pytest.approx(float(norm.norm()), rel=1e-5)


# n, s, o, d, m, bias, by_jacobian
SHAPES = [
    (1, 1, 2, 3, 4, 1.0, False),
    (7, 1, 3, 5, 4, 1.0, False),
    (48, 1, 2, 33, 17, 0.0, False),
    (130, 1, 10, 17, 40, 1.0, False),
    (60, 3, 2, 20, 30, 1.0, False),
    (20, 12, 2, 9, 8, 1.0, False),
    (20, 12, 3, 9, 8, 1.0, True),
    (110, 12, 2, 60, 50, 1.0, True),
    (40, 1, 2, 20, 0, 0.0, False),
    (20, 1, 3, 0, 20, 1.0, False),
    (5, 1, 70, 6, 7, 0.0, False),
]


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ops(op, dtype, shape):
    *sizes, bias, by_jacobian = shape
    n, _, o = sizes[:3]
    forward, backward = reference.factors(*sizes, dtype)
    k = reference.kernel(forward, backward, bias)
    v = torch.randn(n, o, 1, dtype=torch.float64)
    v -= v.mean()
    found = op.tangent_moments(one_layer(forward, backward, bias, by_jacobian), v, "highest", True)
    size = float(k.norm())
    rounding = (1e-14 if dtype == torch.float64 else 1e-6) * size
    blocks = k.view(n, o, n, o)
    totals = {"global": k.sum(), "per_output": torch.einsum("xiyi->", blocks)}
    for centering, (form, square, trace, total) in zip(BOTH, found, strict=True):
        labels = reference.centered_features(v[..., 0], centering).flatten()
        assert abs(form - labels @ k @ labels) <= rounding * float(labels.square().sum()) + 1e-300
        assert abs(square - reference.centered(k, centering, o).square().sum()) <= rounding * size
        assert abs(trace - k.trace()) <= rounding * math.sqrt(n * o)
        assert abs(total - totals[centering]) <= rounding * n * o


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("n", [30, 150])
def test_moments_of_kernels_and_sums(op, n):
    """Three kernels of one, two and one layers, two of which share a backward factor."""
    o = 3
    first = (*reference.factors(n, 1, o, 5, 20), 1.0)
    second = [(*reference.factors(n, 4, o, 3, 9, seed=1), 1.0, True), (*reference.factors(n, 2, o, 3, 9, seed=2), 0.0)]
    third = (reference.factors(n, 1, o, 6, 20, seed=3)[0], first[1], 0.0)
    batch = kernels([first], second, [third])
    dense = [
        reference.kernel(*first),
        reference.kernel(*second[0][:3]) + reference.kernel(*second[1]),
        reference.kernel(*third),
    ]
    found = op.per_output_inner_products(batch, "highest")
    norms = torch.stack([k.norm() for k in dense])
    for centering, got in zip(BOTH, found, strict=True):
        centered = torch.stack([reference.centered(k, centering, o) for k in dense])
        expected = torch.einsum("aij,bij->ab", centered, centered)
        assert ((got - expected).abs() <= 1e-6 * norms[:, None] * norms).all()
        assert torch.equal(got, got.T)
    v = torch.randn(n, o, 1, dtype=torch.float64)
    v -= v.mean()
    for centering, numbers in zip(BOTH, op.tangent_moments(batch, v, "highest", True), strict=True):
        labels = reference.centered_features(v[..., 0], centering).flatten()
        for k, form, square in zip(dense, numbers.inner_product, numbers.squared_norm, strict=True):
            assert abs(form - labels @ k @ labels) <= 1e-6 * k.norm() * labels.square().sum()
            assert abs(square - reference.centered(k, centering, o).square().sum()) <= 1e-6 * k.norm() ** 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark of Linux")
def test_many_positions_and_outputs_go_by_their_jacobian():
    """The offsets of pairs of positions would take 400 MB."""
    forward, backward = reference.factors(40, 80, 20, 3, 4)
    k = reference.kernel(forward, backward, 1.0)
    held = memory.reset_high_water_mark()
    found = ops.per_output_inner_products(one_layer(forward, backward, 1.0), "highest")[:, 0, 0]
    assert memory.high_water_mark() - held < 200 << 20
    for centering, square in zip(BOTH, found, strict=True):
        assert float(square) == pytest.approx(float(reference.centered(k, centering, 20).square().sum()), rel=1e-5)


@pytest.mark.parametrize("by_jacobian", [False, True])
@pytest.mark.parametrize("scales", [(1e-18, 1e-18), (1e18, 1e18), (1.0, 1e-30), (1e-30, 1.0), (1e30, 1.0), (1.0, 1e30)])
def test_extreme_scales(scales, by_jacobian):
    """Products of fp32 factors that leave its range."""
    forward, backward = reference.factors(50, 3 if by_jacobian else 1, 3, 6, 7)
    forward, backward = forward * scales[0], backward * scales[1]
    k = reference.kernel(forward, backward, 0.0)
    v = torch.randn(50, 3, 1, dtype=torch.float64)
    v -= v.mean()
    batch = one_layer(forward, backward, 0.0, by_jacobian)
    found = ops.tangent_moments(batch, v, "highest", per_output=True)
    products = ops.per_output_inner_products(batch, "highest")[:, 0, 0]
    for centering, (form, square, _, _), product in zip(BOTH, found, products, strict=True):
        labels = reference.centered_features(v[..., 0], centering).flatten()
        exact = float(reference.centered(k, centering, 3).square().sum())
        assert float(square) == pytest.approx(exact, rel=1e-5)
        assert float(product) == pytest.approx(exact, rel=1e-5)
        assert float(form) == pytest.approx(float(labels @ k @ labels), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e-10, 1e-20])
def test_inputs_that_are_nothing_beside_the_bias(scale):
    """The bias goes out with the means, and what is left is beyond fp32 at the scale of the bias."""
    forward, backward = reference.factors(40, 1, 3, 6, 7)
    forward, backward = scale * forward, 1 + scale * backward
    j = torch.einsum("xsim,xsd->ximd", backward.double(), forward.double()).flatten(2)
    j = torch.cat([j, backward[:, 0].double()], 2)
    psi = reference.centered_features(j, "per_output").flatten(0, 1)
    exact = float((psi @ psi.T).square().sum())
    v = torch.randn(40, 3, 1, dtype=torch.float64)
    batch = one_layer(forward, backward, 1.0)
    _, found = ops.tangent_moments(batch, v - v.mean(), "highest", per_output=True)
    assert float(found.squared_norm) == pytest.approx(exact, rel=1e-5)
    assert float(ops.per_output_inner_products(batch, "highest")[1]) == pytest.approx(exact, rel=1e-5)


def test_a_deep_network_whose_gradients_vanish():
    """Gradients of 1e-25, as of a hundred layers of tanh at PyTorch's initialisation."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(10, 32), torch.nn.Tanh()]
    for _ in range(120):
        layers += [torch.nn.Linear(32, 32), torch.nn.Tanh()]
    model, x = torch.nn.Sequential(*layers, torch.nn.Linear(32, 3)), torch.randn(20, 10)
    y = torch.randint(0, 3, (20,))
    one_hot = torch.nn.functional.one_hot(y, 3).double()
    for kernel in ah.tangent_kernels(model, x, layers=["0", "2", "40"]).values():
        (one,) = kernel.factors
        g = one.backward.double()
        j = torch.cat([torch.einsum("xsim,xsd->ximd", g, one.forward.double()).flatten(2), g[:, 0]], 2)
        for centering in BOTH:
            # Scaled, since the reference squares sums of squares.
            expected = reference.cka_of_features(j / j.abs().max(), one_hot, centering)
            assert ah.cka(kernel, y, centering=centering) == pytest.approx(expected, rel=1e-5)


def test_spectra_of_kernels_close_to_constant():
    """More rows than are made dense, and eigenvalues that are small beside the trace, but not rounding."""
    torch.manual_seed(2)
    model = networks.mlp(7, 32, 6, 11, bias=True).double()
    x = torch.randn(1, 6, dtype=torch.float64) + 1e-4 * torch.randn(49, 6, dtype=torch.float64)
    kernel = list(ah.tangent_kernels(model, x).values())[-1]
    dense = reference.centered(kernel.to_dense(), "per_output", o=11)
    values = torch.linalg.eigvalsh(dense)
    expected = float(values.square().sum() / values[-1] ** 2)
    assert ah.stable_rank(kernel, centering="per_output") == pytest.approx(expected, rel=1e-3)


def test_products_of_kernels_close_to_constant_keep_their_digits():
    """Also where they need not be exact: centering leaves 1e-6 of K, and products in float32 are off by 1e-7 of it."""
    forward, backward = (one[:1] + 1e-3 * one for one in reference.factors(60, 1, 3, 6, 7, torch.float64))
    kernel = ah.TangentKernel(ah.LayerFactors(forward.float(), backward.float(), bias=True))
    v = torch.randn(180, 4, dtype=torch.float64)
    exact = reference.kernel(forward.float(), backward.float(), 1.0)
    for centering in BOTH:
        expected = reference.centered(exact, centering, 3) @ v
        error = (kernel.product(v, centering=centering, exact=False) - expected).norm() / expected.norm()
        assert error < (1e-6 if centering == "per_output" else 1e-2)


def test_vectors_of_a_wrong_shape_are_refused_by_name():
    kernel = ah.TangentKernel(ah.LayerFactors(*reference.factors(9, 1, 3, 4, 5), bias=True))
    v = torch.randn(27, dtype=torch.float64)
    for centering in (*BOTH, None):
        assert torch.equal(kernel.product(v, centering=centering), kernel.product(v[:, None], centering=centering))
        for wrong in (torch.randn(20, 1), torch.randn(27, 0), torch.randn(27, 1, 1)):
            with pytest.raises(ValueError, match=r"v: expected shape \[27\] or \[27, columns\]"):
                kernel.product(wrong, centering=centering)
        with pytest.raises(TypeError, match="v: expected a tensor"):
            kernel.product([1.0] * 27, centering=centering)


def test_strided_and_expanded_factors():
    forward, backward = reference.factors(60, 1, 4, 6, 24)
    transposed = backward.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)[..., ::2]
    expanded = backward[:1].expand(60, 1, 4, 24)
    for strided in (transposed, expanded):
        found = ops.per_output_inner_products(one_layer(forward, strided, 1.0), "highest")
        same = ops.per_output_inner_products(one_layer(forward, strided.contiguous(), 1.0), "highest")
        torch.testing.assert_close(found, same, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(200, 1, 10, 50, 60), (60, 4, 3, 20, 30), (30, 1, 3, 0, 500)], ids=str)
def test_same_bits_for_any_number_of_threads(shape):
    forward, backward = reference.factors(*shape)
    v = torch.randn(shape[0], shape[2], 1, dtype=torch.float64)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5, 2):
            torch.set_num_threads(threads)
            both = ops.tangent_moments(one_layer(forward, backward, 1.0), v - v.mean(), "highest", per_output=True)
            two = kernels([(forward, backward, 1.0)], [(forward, backward * 2, 0.0)])
            results.append((*both[0], *both[1], ops.per_output_inner_products(two, "highest")))
    finally:
        torch.set_num_threads(before)
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))


def test_opcheck():
    forward, backward = reference.factors(8, 2, 3, 4, 5)
    v = torch.randn(8, 3, 1, dtype=torch.float64)
    batch = one_layer(forward, backward, 1.0)
    torch.library.opcheck(torch.ops.ahkernels.per_output_inner_products, (*batch, "highest"))
    torch.library.opcheck(torch.ops.ahkernels.tangent_moments, (*batch, v, "highest", True))


def test_for_kernels_over_samples_both_are_the_same():
    model, x = networks.mlp(4, 11, 6, 3, bias=True).double(), torch.randn(30, 6, dtype=torch.float64)
    y = torch.randint(0, 3, (30,))
    for outputs in ("trace", "sum", 1):
        for kernel in ah.tangent_kernels(model, x, outputs=outputs).values():
            found = [ah.cka(kernel, y, centering=one) for one in BOTH]
            assert found[0] == found[1] or all(map(math.isnan, found))
            assert kernel.frobenius_norm(centering="global") == kernel.frobenius_norm(centering="per_output")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_whose_blocks_are_constant(dtype):
    """Each pair of outputs has a constant of its own: nothing per output, and much globally."""
    forward = torch.full((12, 1, 2), 1 / 3, dtype=dtype)
    backward = torch.randn(1, 1, 3, 7, dtype=dtype).expand(12, 1, 3, 7)
    kernel = ah.TangentKernel(ah.LayerFactors(forward, backward, bias=True, layer="fc"))
    y = torch.randn(12, 3)
    assert ah.cka(kernel, y) >= 0
    for job in (ah.cka, ah.label_correlation, lambda k, y, centering: ah.estimate_cka(k, y, centering=centering).value):
        with pytest.warns(ah.DegenerateKernelWarning, match="layer 'fc' is constant"):
            assert math.isnan(job(kernel, y, centering="per_output"))
    assert math.isnan(ah.stable_rank(kernel, centering="per_output"))
    with pytest.warns(ah.DegenerateKernelWarning, match="y is the same in all rows of the same output"):
        of_outputs = torch.tensor([[1.0, 2.0, 3.0]]).expand(12, 3)
        factors = reference.factors(12, 1, 3, 4, 5)
        assert math.isnan(
            ah.cka(ah.TangentKernel(ah.LayerFactors(*factors, bias=True)), of_outputs, centering="per_output")
        )


@pytest.mark.parametrize("wrong", ["both", "per output", True, 1, ["global"]])
def test_a_wrong_centering_is_refused_by_name(wrong):
    kernel = ah.TangentKernel(ah.LayerFactors(*reference.factors(9, 1, 3, 4, 5), bias=True))
    y, v = torch.randint(0, 3, (9,)), torch.randn(27, 1)
    for job in (
        lambda: ah.cka(kernel, y, centering=wrong),
        lambda: ah.similarity([kernel], centering=wrong),
        lambda: ah.eigenvalues(kernel, 2, centering=wrong),
        lambda: ah.stable_rank(kernel, centering=wrong),
        lambda: ah.label_correlation(kernel, y, centering=wrong),
        lambda: ah.estimate_frobenius_norm(kernel, centering=wrong),
        lambda: ah.estimate_cka(kernel, y, centering=wrong),
        lambda: kernel.product(v, centering=wrong),
        lambda: kernel.linear_operator(centering=wrong),
        lambda: kernel.frobenius_norm(centering=wrong),
    ):
        with pytest.raises(ValueError, match='centering: expected "global" or "per_output"'):
            job()


@pytest.mark.parametrize("wrong", ["both", (), ("global", "both"), ("global", "global"), None, 3, {"global"}])
def test_reports_refuse_other_centerings(wrong):
    model, x, y = networks.mlp(2, 4, 3, 3, bias=True), torch.randn(5, 3), torch.randint(0, 3, (5,))
    with pytest.raises(ValueError, match="centering: expected"):
        ah.layerwise_alignment(model, x, y, centering=wrong)
    with pytest.raises(ValueError, match="centering: expected"):
        ah.AlignmentTracker(model, x, y, centering=wrong)


def test_one_capture_serves_both(monkeypatch):
    model, x, y = networks.mlp(3, 9, 6, 4, bias=True), torch.randn(20, 6), torch.randint(0, 4, (20,))
    passes = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    ah.layerwise_alignment(model, x, y)
    alone = len(passes)
    ah.layerwise_alignment(model, x, y, centering=BOTH)
    hook.remove()
    assert len(passes) == 2 * alone


def test_estimates_of_both_centerings():
    model, x, y = networks.mlp(3, 40, 12, 4, bias=True), torch.randn(150, 12), torch.randint(0, 4, (150,))
    exact = ah.layerwise_alignment(model, x, y, centering=BOTH)
    found = ah.layerwise_alignment(model, x, y, centering=BOTH, products=60)
    for centering in BOTH:
        difference = (found[centering].cka - exact[centering].cka).abs()
        assert (difference <= 5 * found[centering].cka_standard_error + 1e-5).all()


@pytest.mark.parametrize("o", [11, 12, 30])
def test_outputs_in_groups_where_offsets_would_take_too_much(monkeypatch, o):
    from ahkernels import inner_products

    model, x = networks.mlp(3, 20, 6, o, bias=True).double(), torch.randn(25, 6, dtype=torch.float64)
    y = torch.randint(0, o, (25,))
    found = ah.tangent_kernels(model, x)
    whole = ah.layerwise_alignment(model, x, y, centering=BOTH)
    similar = ah.similarity(found, centering="per_output")
    monkeypatch.setattr(inner_products, "OFFSET_BYTES", 36 * 3 * 25 * 10**2)  # of the three layers with ten outputs
    largest = []
    true = ops.tangent_moments

    def watched(batch, v, precision, per_output):
        if per_output:
            largest.append(batch.o)
        return true(batch, v, precision, per_output)

    monkeypatch.setattr(ops, "tangent_moments", watched)
    parts = ah.layerwise_alignment(model, x, y, centering=BOTH)
    assert max(largest) <= 10
    for centering in BOTH:
        torch.testing.assert_close(parts[centering].cka, whole[centering].cka, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(parts[centering].centered_norm, whole[centering].centered_norm, rtol=1e-10, atol=0)
    torch.testing.assert_close(ah.similarity(found, centering="per_output"), similar, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("o", [2, 5, 9])
def test_groups_are_not_cut_any_smaller_where_offsets_never_fit(monkeypatch, o):
    from ahkernels import inner_products

    model, x = networks.mlp(2, 20, 6, o, bias=True).double(), torch.randn(25, 6, dtype=torch.float64)
    kernel = ah.tangent_kernels(model, x)["0"]
    whole = kernel.frobenius_norm(centering="per_output")
    monkeypatch.setattr(inner_products, "OFFSET_BYTES", 1)
    assert kernel.frobenius_norm(centering="per_output") == pytest.approx(whole, rel=1e-12)


def test_infinite_width_per_output():
    """K = k (x) I: each block of k is centered over the samples."""
    theory = ah.signal_propagation
    x, y = torch.randn(12, 5), torch.randint(0, 3, (12,))
    y[:3] = torch.arange(3)
    kernels = theory.layer_kernels(theory.Network("relu"), x, depth=5)
    report = kernels.alignment(y, centering="per_output")
    assert report.centering == "per_output"
    one_hot = torch.nn.functional.one_hot(y, 3).double()
    for index, k in enumerate(torch.from_numpy(kernels.tangent())):
        dense = torch.einsum("xy,ij->xiyj", k, torch.eye(3, dtype=torch.float64)).reshape(36, 36)
        vector = one_hot.flatten()
        expected = reference.cka(dense, torch.outer(vector, vector), "per_output", o=3)
        assert float(report.cka[index]) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="centering: expected"):
        kernels.alignment(y, centering="none")
