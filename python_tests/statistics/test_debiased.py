"""Debiased alignments against the textbook formula in fp64, the unbiasedness of their parts, and what has none."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import networks
import pytest
import reference
import torch
from torch import Tensor, nn

import ahkernels as ah
from ahkernels import inner_products, ops
from ahkernels.outputs import OutputSelection
from ahkernels.statistics.debiased import bias_of_inner_products

DTYPES = [torch.float64, torch.float32]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


# ---- the specification


def hsic(k: Tensor, h: Tensor) -> float:
    """The unbiased estimator of Song et al. (2012), equation 5, as it is written, of kernels [n, n]."""
    n = len(k)
    k, h = k - k.diagonal().diag(), h - h.diagonal().diag()
    ones = torch.ones(n, dtype=torch.float64)
    total = (k @ h).trace() + (ones @ k @ ones) * (ones @ h @ ones) / ((n - 1) * (n - 2))
    return float(total - 2 / (n - 2) * (ones @ k @ h @ ones)) / (n * (n - 3))


def mean_over_tuples(k: Tensor, h: Tensor) -> float:
    """What HSIC is the mean of, over four different samples: kernels [n, n, o, o], by samples and outputs."""
    n = len(k)
    different = 1 - torch.eye(n, dtype=torch.float64)
    k, h = k * different[..., None, None], h * different[..., None, None]
    pairs = torch.einsum("xyij,xyij->", k, h) / (n * (n - 1))
    products = torch.einsum("xyij,zwij->xyzw", k, h)
    triples = torch.einsum("xyxz,yz->", products, different) / (n * (n - 1) * (n - 2))
    apart = torch.einsum("xz,xw,yz,yw->xyzw", *[different] * 4)
    return float(pairs - 2 * triples + (products * apart).sum() / (n * (n - 1) * (n - 2) * (n - 3)))


def hsic_of_outputs(k: Tensor, h: Tensor, n: int, o: int) -> float:
    """HSIC of kernels [n*o, n*o]; the part that changes its sign with the samples counts 1 + 2 / (n (n - 3)) times."""
    k, h = (one.view(n, o, n, o).permute(0, 2, 1, 3) for one in (k, h))
    (same_k, sign_k), (same_l, sign_l) = (((one + one.mT) / 2, (one - one.mT) / 2) for one in (k, h))
    return mean_over_tuples(same_k, same_l) + (1 + 2 / (n * (n - 3))) * mean_over_tuples(sign_k, sign_l)


def unbiased(k: Tensor, h: Tensor, o: int = 1) -> float:
    """HSIC of kernels [n*o, n*o] in fp64."""
    k, h = k.double(), h.double()
    return hsic(k, h) if o == 1 else hsic_of_outputs(k, h, len(k) // o, o)


def debiased(k: Tensor, h: Tensor, o: int = 1) -> float:
    """The debiased alignment of kernels [n*o, n*o]."""
    return unbiased(k, h, o) / math.sqrt(unbiased(k, k, o) * unbiased(h, h, o))


def left(k: Tensor, o: int = 1) -> float:
    """How much of the square of a centered kernel is no bias: rounding grows as its inverse."""
    n = len(k) // o
    return n * (n - 3) * unbiased(k, k, o) / float(reference.centered(k, "per_output", o).square().sum())


def of_features(psi: Tensor, phi: Tensor) -> float:
    """The same from features [n, P] that are centered already: nothing is left of a constant part to cancel."""
    scale = [one / one.norm() for one in (psi, phi)]
    return debiased(*(one @ one.T for one in scale))


def test_the_formula_is_the_mean_over_four_different_samples():
    k, h = (reference.kernel(*reference.factors(7, 1, 1, 3, 4, torch.float64, seed), 1.0) for seed in (0, 1))
    assert hsic(k, h) == pytest.approx(mean_over_tuples(k[..., None, None], h[..., None, None]), rel=1e-12)


# ---- kernels against the specification

# n, s, o, d, m, bias, by_jacobian
SHAPES = [
    (4, 1, 1, 3, 5, True, False),
    (5, 1, 1, 6, 2, False, False),
    (130, 1, 1, 17, 40, True, False),
    (40, 3, 1, 20, 30, True, False),
    (40, 3, 1, 20, 30, True, True),
    (30, 12, 1, 9, 8, False, True),
    (30, 1, 1, 20, 0, False, False),
    (30, 1, 1, 0, 20, True, False),
    (6, 1, 3, 5, 4, True, False),
    (10, 1, 10, 5, 40, True, False),
    (12, 4, 2, 5, 3, False, False),
    (12, 9, 3, 5, 4, True, True),
]


def shaped(shape: tuple[Any, ...], dtype: torch.dtype, seed: int = 0) -> tuple[ah.TangentKernel, Tensor]:
    """A kernel of random factors, and the same dense in fp64."""
    *sizes, bias, by_jacobian = shape
    forward, backward = reference.factors(*sizes, dtype, seed)
    factors = ah.LayerFactors(forward, backward, bias, by_jacobian=by_jacobian)
    return ah.TangentKernel(factors, precision="highest"), reference.kernel(forward, backward, float(bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [one for one in SHAPES if one[3] * one[4] or one[5]], ids=str)
def test_kernels_with_one_another_and_with_labels(shape, dtype):
    n, _, o = shape[:3]
    (kernel, k), (other, h) = shaped(shape, dtype), shaped((*shape[:-1], False), dtype, seed=1)
    options = {"centering": "per_output", "debiased": True}
    y = torch.arange(n) % max(o, 2)
    targets = (nn.functional.one_hot(y, o) if o > 1 else y[:, None]).double()
    tolerance = TOLERANCES[dtype] / min(left(k, o), left(h, o), 1)
    assert ah.cka(kernel, other, **options) == pytest.approx(debiased(k, h, o), abs=tolerance)
    of_labels = targets.flatten().outer(targets.flatten())
    assert ah.cka(kernel, y, **options) == pytest.approx(debiased(k, of_labels, o), abs=tolerance)
    assert ah.cka(kernel, kernel, **options) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_similarity_of_layers_and_of_their_sums(dtype):
    shapes = [(25, 1, 1, 6, 7, True, False), (25, 3, 1, 4, 5, True, False), (25, 5, 1, 4, 5, False, True)]
    pairs = [shaped(shape, dtype, seed) for seed, shape in enumerate(shapes)]
    kernels, dense = [kernel for kernel, _ in pairs], [k for _, k in pairs]
    kernels.append(kernels[0] + kernels[1] + 0.5 * kernels[2])
    dense.append(dense[0] + dense[1] + 0.5 * dense[2])
    found = ah.similarity(kernels, debiased=True)
    assert torch.equal(found, ah.similarity(kernels, debiased=True, centering="per_output"))
    for i, j in itertools.product(range(4), repeat=2):
        assert float(found[i, j]) == pytest.approx(debiased(dense[i], dense[j]), abs=TOLERANCES[dtype])
    assert bool((ah.similarity(kernels[:2], kernels[2:], debiased=True) - found[:2, 2:]).abs().max() < 1e-6)


@pytest.mark.parametrize("outputs", ["trace", "sum", 1, "all", (2, 0)], ids=str)
@pytest.mark.parametrize("name", ["conv", "words"])
def test_reports_of_networks(name, outputs):
    """Convolutions, norms and embeddings; classes are unbalanced."""
    torch.manual_seed(0)
    if name == "conv":
        model: nn.Module = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(48, 3)
        )
        x = torch.randn(12, 1, 4, 4, dtype=torch.float64)
    else:
        model = networks.networks_without_rules()["words"][0]
        x = torch.randint(0, 9, (12, 4))
    model = model.double().eval()
    o = model(x).shape[1]
    y = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, o - 1, o - 1])
    spec = outputs if o > 2 or outputs != (2, 0) else (1, 0)
    report = ah.layerwise_alignment(model, x, y, outputs=spec, centering="per_output", statistics=["debiased_cka"])
    rows = 1 if spec in ("trace", "sum", 1) else o if spec == "all" else 2
    labels = reference.label_kernel(y, o, spec)
    kernels = ah.tangent_kernels(model, x, outputs=spec)
    assert list(report.statistics)[:2] == ["cka", "debiased_cka"]
    for layer, jacobian in reference.jacobians(model, x).items():
        expected = debiased(reference.kernels_of_outputs(jacobian, spec), labels, rows)
        assert float(report.debiased_cka[report.layers.index(layer)]) == pytest.approx(expected, abs=1e-10)
        alone = ah.cka(kernels[layer], y, centering="per_output", debiased=True)
        assert alone == pytest.approx(expected, abs=1e-10)


def test_groups_of_layers_and_both_centerings():
    model, x = networks.mlp(3, 9, 6, 4, bias=True).double(), torch.randn(15, 6, dtype=torch.float64)
    y = torch.arange(15) % 4
    found = ah.layerwise_alignment(
        model,
        x,
        y,
        outputs="trace",
        layers={"all": "*"},
        statistics=["debiased_cka"],
        centering=["global", "per_output"],
    )
    k = sum(reference.kernels_of_outputs(one, "trace") for one in reference.jacobians(model, x).values())
    for report in found.values():
        expected = debiased(k, reference.label_kernel(y, 4, "trace"))
        assert float(report.debiased_cka) == pytest.approx(expected, abs=1e-10)
        assert report.row() == {"cka/all": report["all"], "debiased_cka/all": float(report.debiased_cka)}
        assert " debiased " in str(report)


def test_targets_that_are_no_classes():
    kernel, k = shaped((30, 1, 1, 5, 4, True, False), torch.float64)
    kernel = ah.TangentKernel(kernel.factors, OutputSelection("trace", 3))
    y = torch.randn(30, 3, dtype=torch.float64) + 100
    centered = y - y.mean(0)
    found = ah.cka(kernel, y, debiased=True)
    assert found == pytest.approx(debiased(k, centered @ centered.T), abs=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize(("s", "by_jacobian"), [(1, False), (3, False), (3, True)])
def test_kernels_close_to_constant_keep_their_digits(s, by_jacobian, spread, dtype):
    """Within the square of `spread` of constant."""
    n, generator = 40, torch.Generator().manual_seed(0)

    def factor(*shape: int) -> Tensor:
        mean = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        return (mean + spread * torch.randn(n, *shape, generator=generator, dtype=torch.float64)).to(dtype)

    a, g = factor(s, 12), factor(s, 1, 9)
    kernel = ah.TangentKernel(ah.LayerFactors(a, g, bias=True, by_jacobian=by_jacobian), precision="highest")
    a, g = a.double(), g.double()
    mean_a, mean_g = a.mean(0), g.mean(0)
    j = torch.einsum("xsd,xsim->xdm", a - mean_a, g) + torch.einsum("sd,xsim->xdm", mean_a, g - mean_g)
    psi = torch.cat([j.flatten(1), (g - mean_g).sum(1).flatten(1)], 1)
    psi -= psi.mean(0)
    y = torch.randint(0, 2, (n,), generator=generator)
    labels = y.double()[:, None] - y.double().mean()
    assert ah.cka(kernel, y, debiased=True) == pytest.approx(of_features(psi, labels), abs=TOLERANCES[dtype])


@pytest.mark.parametrize("by_jacobian", [False, True])
@pytest.mark.parametrize("scales", [(1e-18, 1e-18), (1e18, 1e18), (1e-30, 1.0), (1.0, 1e30)])
def test_extreme_scales(scales, by_jacobian):
    forward, backward = reference.factors(30, 2, 1, 6, 7)
    y = torch.arange(30) % 2
    of = [
        ah.TangentKernel(ah.LayerFactors(a * forward, g * backward, bias=False, by_jacobian=by_jacobian))
        for a, g in (scales, (1.0, 1.0))
    ]
    found, expected = (ah.cka(kernel, y, debiased=True) for kernel in of)
    assert found == pytest.approx(expected, abs=1e-5)


def test_outputs_in_groups_where_blocks_would_take_too_much(monkeypatch):
    model, x = networks.mlp(3, 20, 6, 12, bias=True).double(), torch.randn(25, 6, dtype=torch.float64)
    y = torch.arange(25) % 12
    options = {"centering": "per_output", "statistics": ["debiased_cka"]}
    kernels = ah.tangent_kernels(model, x)
    similar = ah.similarity(kernels, centering="per_output", debiased=True)
    whole = ah.layerwise_alignment(model, x, y, **options)
    monkeypatch.setattr(inner_products, "OFFSET_BYTES", 36 * 3 * 25 * 10**2)
    parts = ah.layerwise_alignment(model, x, y, **options)
    torch.testing.assert_close(parts.debiased_cka, whole.debiased_cka, rtol=0, atol=1e-10)
    found = ah.similarity(kernels, centering="per_output", debiased=True)
    torch.testing.assert_close(found, similar, rtol=0, atol=1e-10)


# ---- unbiased


def parts(kernels: list[ah.TangentKernel]) -> Tensor:
    """HSIC_1 of every two kernels, of which alignments are ratios."""
    n = kernels[0].n
    products = inner_products.inner_products(kernels, "per_output")
    return (products - bias_of_inner_products(kernels)) / (n * (n - 3))


@pytest.mark.parametrize("size", [4, 5, 7])
def test_the_mean_over_all_subsets_is_that_of_the_whole(size):
    """Kernels of which the biased estimate is far off."""
    kernels = [shaped((9, 2, 1, 4, 30, True, False), torch.float64, seed)[0] for seed in (0, 1)]
    whole = parts(kernels)
    subsets = [torch.tensor(one) for one in itertools.combinations(range(9), size)]
    mean = torch.stack([parts([kernel.subset(one) for kernel in kernels]) for one in subsets]).mean(0)
    torch.testing.assert_close(mean, whole, rtol=0, atol=1e-10 * float(whole.diagonal().max()))
    biased = torch.stack(
        [
            inner_products.inner_products([kernel.subset(one) for kernel in kernels], "global") / size**2
            for one in subsets
        ]
    )
    assert float(biased.mean(0)[0, 0]) > 1.5 * float(whole[0, 0])


@pytest.mark.parametrize("size", [4, 6])
def test_of_several_outputs_the_mean_is_off_by_no_more_than_it_says(size):
    kernel, k = shaped((8, 1, 3, 4, 2, True, False), torch.float64)
    blocks = k.view(8, 3, 8, 3).permute(0, 2, 1, 3)
    exact = mean_over_tuples(blocks, blocks)
    subsets = itertools.combinations(range(8), size)
    mean = torch.stack([parts([kernel.subset(torch.tensor(one))]) for one in subsets]).mean()
    assert exact < float(mean) < exact * (1 + 2 / (size * (size - 3)))


def test_labels_that_carry_no_information_have_none_on_average():
    """Over all ways to assign two classes to seven samples; the biased mean is far above."""
    kernel, _ = shaped((7, 1, 1, 30, 30, False, False), torch.float64)
    labels = [torch.tensor([i in chosen for i in range(7)]).long() for chosen in itertools.combinations(range(7), 3)]
    mean = {kind: sum(ah.cka(kernel, y, debiased=kind) for y in labels) / len(labels) for kind in (False, True)}
    assert abs(mean[True]) < 1e-12
    assert mean[False] > 0.3


# ---- what has no debiased alignment


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [30, 300])
def test_a_kernel_whose_samples_have_nothing_in_common(n, dtype):
    """An embedding of words that differ, which has an alignment."""
    forward, backward = torch.eye(n, dtype=dtype)[:, None], torch.randn(n, 1, 1, 5).to(dtype)
    kernel = ah.TangentKernel(ah.LayerFactors(forward, backward, bias=False, layer="words"))
    y = torch.arange(n) % 2
    assert ah.cka(kernel, y) > 0
    other = ah.TangentKernel(ah.LayerFactors(*reference.factors(n, 1, 1, 4, 5, dtype), bias=True))
    for compare in (y, other):
        with pytest.warns(
            ah.DegenerateKernelWarning, match="layer 'words' is constant between different samples, up to"
        ):
            assert math.isnan(ah.cka(kernel, compare, debiased=True))
    with pytest.warns(ah.DegenerateKernelWarning, match="constant between"):
        found = ah.similarity([kernel, other], debiased=True)
    assert found.isnan().tolist() == [[True, True], [True, False]]


def test_labels_of_which_each_class_has_one_sample():
    factors = shaped((6, 1, 1, 4, 5, True, False), torch.float64)[0].factors
    traced = ah.TangentKernel(factors, OutputSelection("trace", 6))
    assert ah.cka(traced, torch.arange(6)) > 0
    with pytest.warns(ah.DegenerateKernelWarning, match="y is the same for all pairs of different samples"):
        assert math.isnan(ah.cka(traced, torch.arange(6), debiased=True))


def test_a_constant_kernel_and_constant_labels():
    forward, backward = torch.full((9, 1, 2), 1 / 3), torch.ones(9, 1, 1, 4)
    constant = ah.TangentKernel(ah.LayerFactors(forward, backward, bias=True))
    with pytest.warns(ah.DegenerateKernelWarning, match="kernel is constant, so"):
        assert math.isnan(ah.cka(constant, torch.arange(9) % 2, debiased=True))
    with pytest.warns(ah.DegenerateKernelWarning, match="y is the same in all rows"):
        assert math.isnan(ah.cka(shaped(SHAPES[1], torch.float32)[0], torch.ones(5, dtype=torch.long), debiased=True))


def test_a_report_tells_of_a_layer_without_one_and_keeps_its_alignment():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(12, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.words(x)))

    torch.manual_seed(0)
    model, x, y = Words(), torch.arange(12), torch.arange(12) % 2
    with pytest.warns(ah.DegenerateKernelWarning, match="kernel of layer 'words' is constant between"):
        report = ah.layerwise_alignment(model, x, y, outputs="trace", statistics=["debiased_cka"])
    assert report["words"] > 0 and report.debiased_cka.isnan().tolist() == [True, False]
    assert report.to_dict()["statistics"]["debiased_cka"][0] is None


@pytest.mark.parametrize("n", [1, 2, 3])
def test_less_than_four_samples_are_refused(n):
    kernel, _ = shaped((n, 1, 1, 3, 4, True, False), torch.float32)
    for job in (
        lambda: ah.cka(kernel, torch.arange(n) % 2, debiased=True),
        lambda: ah.cka(kernel, kernel, debiased=True),
        lambda: ah.similarity([kernel], debiased=True),
    ):
        with pytest.raises(ValueError, match=f"debiased: expected at least 4 samples to debias alignments, got {n}"):
            job()
    model, x = networks.mlp(2, 4, 3, 2, bias=True), torch.randn(n, 3)
    with pytest.raises(ValueError, match=f"statistics: expected at least 4 samples to debias alignments, got {n}"):
        ah.layerwise_alignment(model, x, torch.arange(n) % 2, outputs="trace", statistics=["debiased_cka"])


def test_several_outputs_that_are_centered_globally_are_refused():
    model, x, y = networks.mlp(2, 4, 3, 3, bias=True), torch.randn(8, 3), torch.arange(8) % 3
    kernel = ah.tangent_kernels(model, x)["0"]
    expected = 'expected centering="per_output", or kernels over samples alone such as those of outputs="trace", to'
    for job in (
        lambda: ah.cka(kernel, y, debiased=True),
        lambda: ah.cka(kernel, kernel, debiased=True),
        lambda: ah.similarity([kernel], debiased=True),
    ):
        with pytest.raises(ValueError, match=f"debiased: {expected}"):
            job()
    for centering in ("global", ["per_output", "global"]):
        with pytest.raises(ValueError, match=f"statistics: {expected}"):
            ah.layerwise_alignment(model, x, y, centering=centering, statistics=["debiased_cka"])


def test_estimated_norms_and_other_mistakes_are_refused():
    model, x, y = networks.mlp(2, 4, 3, 3, bias=True), torch.randn(8, 3), torch.arange(8) % 3
    for options in ({"products": 12}, {"tolerance": 0.1}):
        with pytest.raises(ValueError, match="statistics: expected exact norms for 'debiased_cka', got products or"):
            ah.layerwise_alignment(model, x, y, outputs="trace", statistics=["debiased_cka"], **options)
    kernel = ah.tangent_kernels(model, x, outputs="trace")["0"]
    for wrong in (1, None, "yes"):
        for job in (ah.cka, lambda one, other, **rest: ah.similarity([one, other], **rest)):
            with pytest.raises(TypeError, match="debiased: expected True or False, got"):
                job(kernel, kernel, debiased=wrong)


# ---- without a cost that shows


def test_no_further_pass_over_the_pairs_of_samples(monkeypatch):
    model, x, y = networks.mlp(3, 9, 6, 4, bias=True), torch.randn(20, 6), torch.arange(20) % 4
    calls: list[str] = []
    for name in ("tangent_moments", "centered_inner_products", "per_output_inner_products", "tangent_gram"):
        true = getattr(ops, name)

        def counted(*arguments: Any, true: Any = true, name: str = name, **keywords: Any) -> Any:
            calls.append(name)
            return true(*arguments, **keywords)

        monkeypatch.setattr(ops, name, counted)
    for outputs in ("all", "trace"):
        counts = []
        for statistics in ([], ["debiased_cka"]):
            calls.clear()
            ah.layerwise_alignment(model, x, y, outputs=outputs, centering="per_output", statistics=statistics)
            counts.append(sorted(calls))
        assert counts[0] == counts[1] and counts[0]


def test_a_tracker_keeps_it(tmp_path):
    model, x, y = networks.mlp(2, 5, 3, 3, bias=True), torch.randn(9, 3), torch.arange(9) % 3
    tracker = ah.AlignmentTracker(model, x, y, centering="per_output", statistics=["debiased_cka"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.update(0)
    tracker.save(tmp_path / "history.csv")
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert "debiased_cka" in header.split(",")
