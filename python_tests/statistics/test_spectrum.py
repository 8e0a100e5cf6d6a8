"""Spectra, what they explain of the alignment, and the operator they come from, against dense fp64 decompositions."""

from __future__ import annotations

import math
import warnings

import networks
import numpy as np
import pytest
import reference
import torch
from torch import Tensor, nn

import ahkernels as ah
from ahkernels.outputs import OutputSelection
from ahkernels.samples import Samples
from ahkernels.statistics import spectrum
from ahkernels.statistics.lanczos import largest_eigenpairs

MOST_DENSE_ROWS = spectrum._MOST_DENSE_ROWS


@pytest.fixture(autouse=True)
def _iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of more than 512 rows are iterated here, also those that would be formed since that costs less."""
    monkeypatch.setattr(spectrum, "_MOST_DENSE_ROWS", 0)


def of_spectrum(values: Tensor, *, o: int = 2, seed: int = 0) -> tuple[ah.TangentKernel, Tensor]:
    """A kernel as its Jacobian with these eigenvalues, and the dense matrix."""
    size = len(values)
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    features = rotation * values.sqrt()
    none = torch.empty(size // o, 1, 0, dtype=torch.float64)
    kernel = ah.TangentKernel(ah.LayerFactors(none, features.view(size // o, 1, o, size), bias=True))
    return kernel, features @ features.T


def spectra() -> dict[str, Tensor]:
    index = torch.arange(600, dtype=torch.float64)
    return {
        "condition 1": torch.ones(600, dtype=torch.float64),
        "condition 1e12": 10 ** (-12 * index / 599),
        "clustered": 1 + 1e-6 * index,
        "repeated": torch.cat([torch.full((20,), 3.0), torch.full((80,), 1.0), torch.full((500,), 1e-3)]).double(),
        "rank 5": torch.cat([torch.arange(5, 0, -1), torch.zeros(595)]).double(),
    }


@pytest.mark.parametrize("k", [12, 60])
@pytest.mark.parametrize("centering", ["global", "per_output", None])
@pytest.mark.parametrize("name", list(spectra()))
def test_eigenpairs_against_a_dense_decomposition(name, centering, k):
    kernel, dense = of_spectrum(spectra()[name])
    dense = reference.centered(dense, centering, o=2)
    expected = torch.linalg.eigvalsh(dense).flip(0)
    found = ah.eigenpairs(kernel, k, centering=centering)
    assert (found.values - expected[:k]).abs().max() <= 1e-8 * expected[0]
    assert (dense @ found.vectors - found.vectors * found.values).norm(dim=0).max() <= 1e-9 * expected[0]
    assert (found.residuals - (dense @ found.vectors - found.vectors * found.values).norm(dim=0)).abs().max() < 1e-12
    assert (found.vectors.T @ found.vectors - torch.eye(k)).abs().max() < 1e-10
    assert torch.allclose(ah.eigenvalues(kernel, k, centering=centering), found.values, rtol=1e-10)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-10])
@pytest.mark.parametrize("centering", ["global", "per_output", None])
@pytest.mark.parametrize("name", list(spectra()))
def test_the_largest_eigenpair_alone(name, centering, tolerance):
    """Its iteration ends as soon as it may: the residual keeps the tolerance, and so does the eigenvalue."""
    kernel, dense = of_spectrum(spectra()[name])
    dense = reference.centered(dense, centering, o=2)
    largest = float(torch.linalg.eigvalsh(dense)[-1])
    for seed in range(3):
        found = ah.eigenpairs(kernel, 1, centering=centering, tolerance=tolerance, seed=seed)
        (value,), (vector,) = found.values, found.vectors.T
        residual = float((dense @ vector - vector * value).norm())
        assert residual <= tolerance * largest and float(found.residuals) == pytest.approx(residual, abs=1e-12)
        assert float(vector.norm()) == pytest.approx(1, rel=1e-12)
        assert abs(value - largest) <= tolerance * largest
        again = ah.eigenpairs(kernel, 1, centering=centering, tolerance=tolerance, seed=seed)
        assert torch.equal(again.vectors, found.vectors)


@pytest.mark.parametrize("width", [1, 2, 7])
@pytest.mark.parametrize("rows", [1, 2, 5, 19, 20, 21, 22, 60])
def test_lanczos_iteration_on_few_rows(rows, width):
    """Whose basis is full before, at and after it spans all of them."""
    generator = torch.Generator().manual_seed(rows)
    root = torch.randn(rows, rows, generator=generator, dtype=torch.float64)
    expected = torch.linalg.eigvalsh(root @ root.T).flip(0)
    start = torch.randn(rows, min(rows, width), generator=generator, dtype=torch.float64)
    for k in sorted({1, min(rows, 4), min(rows, 3 * width), rows}):
        values, vectors = largest_eigenpairs((root @ root.T).matmul, start, k, 1e-13, Samples(rows), 1)
        assert (values - expected[:k]).abs().max() <= 1e-11 * expected[0]
        assert (root @ (root.T @ vectors) - vectors * values).norm(dim=0).max() <= 1e-10 * expected[0]
        assert (vectors.T @ vectors - torch.eye(k)).abs().max() < 1e-12
    assert float(largest_eigenpairs(lambda v: 0 * v, start, 1, 1e-13, Samples(rows), 1)[0]) == 0
    calls: list[Tensor] = []
    largest_eigenpairs(lambda v: (calls.append(v), 2 * v)[1], start, 1, 1e-13, Samples(rows), 1)
    assert len(calls) == 1


@pytest.mark.parametrize("size", [30, 600])
def test_all_eigenvalues(size):
    kernel, dense = of_spectrum(spectra()["condition 1e12"][:size])
    expected = torch.linalg.eigvalsh(dense).flip(0)
    assert (ah.eigenvalues(kernel, size, centering=None) - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("centering", ["global", "per_output"])
@pytest.mark.parametrize("outputs", ["all", "trace", "sum", 1])
@pytest.mark.parametrize("n", [20, 200])
def test_alignment_is_correlation_over_the_root_of_the_stable_rank(n, outputs, centering):
    model, x = networks.mlp(4, 11, 6, 3, bias=True).double(), torch.randn(n, 6, dtype=torch.float64)
    y = torch.randint(0, 3, (n,))
    o = 3 if outputs == "all" else 1
    labels = reference.centered(reference.label_kernel(y, 3, outputs), centering, o)
    for kernel in list(ah.tangent_kernels(model, x, outputs=outputs).values())[:-1]:
        dense = reference.centered(kernel.to_dense(), centering, o)
        values = torch.linalg.eigvalsh(dense)
        rank = ah.stable_rank(kernel, centering=centering)
        correlation = ah.label_correlation(kernel, y, centering=centering)
        assert rank == pytest.approx(float(values.square().sum() / values[-1] ** 2), rel=1e-8)
        assert correlation == pytest.approx(float((dense * labels).sum() / values[-1] / labels.norm()), rel=1e-8)
        alignment = ah.cka(kernel, y, centering=centering)
        assert alignment == pytest.approx(correlation / math.sqrt(rank), rel=1e-8)
        if outputs == "all":
            pairs, vector = (
                ah.eigenpairs(kernel, min(len(dense), 60), centering=centering),
                torch.nn.functional.one_hot(y, 3).double(),
            )
            vector = (vector - (vector.mean(0) if centering == "per_output" else vector.mean())).flatten()
            vector = vector / vector.norm()
            part = (pairs.values / pairs.values[0] * (pairs.vectors.T @ vector).square()).sum()
            assert float(part) <= correlation + 1e-8
            assert n > 20 or float(part) == pytest.approx(correlation, rel=1e-8)


@pytest.mark.parametrize(("seed", "spread", "centering"), [(119, 0.1, "global"), (256, 1.0, "per_output")])
def test_largest_eigenvalue_beside_its_copies(seed, spread, centering):
    """A last layer's, one for each output, where ARPACK's own estimate of the residual is too small."""
    torch.manual_seed(seed)
    layers = [nn.Linear(6 if i == 0 else 32, 32) if j == 0 else nn.ReLU() for i in range(6) for j in range(2)]
    model = nn.Sequential(*layers, nn.Linear(32, 11))
    x = torch.randn(1, 6) + spread * torch.randn(49, 6)
    kernel = ah.tangent_kernels(model, x)["12"]
    expected = torch.linalg.eigvalsh(reference.centered(kernel.to_dense().double(), centering, o=11))[-1]
    assert float(ah.eigenvalues(kernel, 1, centering=centering)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("n", [9, 400])
def test_zero_and_constant_kernels(n):
    y = torch.randn(n, 3)
    zero = ah.TangentKernel(ah.LayerFactors(torch.ones(n, 1, 2), torch.zeros(n, 1, 3, 2), bias=False))
    assert torch.equal(ah.eigenvalues(zero, 4), torch.zeros(4, dtype=torch.float64))
    constant = ah.TangentKernel(ah.LayerFactors(torch.ones(n, 1, 2), torch.ones(n, 1, 3, 2), bias=False))
    for kernel in (zero, constant):
        assert math.isnan(ah.stable_rank(kernel))
        with pytest.warns(ah.DegenerateKernelWarning):
            assert math.isnan(ah.label_correlation(kernel, y))
    assert float(ah.eigenvalues(constant, 1, centering=None)) == pytest.approx(2 * 2 * 3 * n)


def random_kernel(n: int = 30, o: int = 3, *, seed: int = 0, bias: bool = True) -> ah.TangentKernel:
    a, g = reference.factors(n, 2, o, 5, 4, torch.float64, seed=seed)
    return ah.TangentKernel(ah.LayerFactors(a, g, bias, layer=f"fc{seed}"))


def test_operators_compose():
    first, second = random_kernel(), random_kernel(seed=1, bias=False)
    a, b = first.to_dense(), second.to_dense()
    both = 2 * (first + second) * 0.25
    assert torch.allclose(both.to_dense(), (a + b) / 2)
    assert "fc0 + fc1" in repr(both)
    assert ah.cka(first + second, first) == pytest.approx(reference.cka(a + b, a))
    v = np.random.default_rng(0).standard_normal((90, 4))
    assert np.allclose(both.linear_operator() @ v, (a + b).numpy() / 2 @ v)
    for centering in ("global", "per_output"):
        centered = reference.centered((a + b) / 2, centering, o=3).numpy()
        assert np.allclose(both.linear_operator(centering=centering) @ v[:, 0], centered @ v[:, 0])
    index = torch.tensor([3, 29, 0])
    rows = (3 * index[:, None] + torch.arange(3)).flatten()
    assert torch.allclose(first.subset(index).to_dense(), a[rows][:, rows])
    blocks = torch.randn(30, 2, 3, dtype=torch.float64)
    whole = torch.block_diag(*blocks)
    assert torch.allclose(first.congruence(blocks).to_dense(), whole @ a @ whole.T)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_fisher_kernel(scale):
    model = networks.mlp(3, 9, 6, 4, bias=True).double()
    x = torch.randn(15, 6, dtype=torch.float64)
    logits = scale * model(x).detach()
    jacobians = reference.jacobians(model, x)
    for layer, kernel in ah.tangent_kernels(model, x).items():
        fisher = ah.fisher_kernel(kernel, logits)
        p = logits.softmax(1)
        h = torch.block_diag(*(torch.diag_embed(p) - p[:, :, None] * p[:, None]))
        psi = jacobians[layer].flatten(0, 1)
        expected = torch.linalg.eigvalsh(psi.T @ h @ psi).flip(0)  # the Fisher information of the parameters
        count = min(len(expected), 60)
        found = ah.eigenvalues(fisher, 60, centering=None)
        assert (found[:count] - expected[:count]).abs().max() <= 1e-8 * expected[0]
        assert found[count:].abs().sum() <= 1e-8 * expected[0]


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            "k: expected a whole number from 1 to 90, the rows of the kernel, got 91",
            lambda k: ah.eigenpairs(k, 91),
        ),
        (
            ValueError,
            "k: expected a whole number from 1 to 90, the rows of the kernel, got 0",
            lambda k: ah.eigenvalues(k, 0),
        ),
        (ValueError, "tolerance: expected a number between 0 and 1, got 0", lambda k: ah.eigenpairs(k, 1, tolerance=0)),
        (
            ValueError,
            r"logits: expected shape \[n, o\] = \[30, 3\], got \[3\]",
            lambda k: ah.fisher_kernel(k, torch.ones(3)),
        ),
        (ValueError, "logits: expected finite", lambda k: ah.fisher_kernel(k, torch.full((30, 3), math.nan))),
        (
            ValueError,
            "kernel: expected one over all outputs .* got outputs = 1",
            lambda k: ah.fisher_kernel(
                ah.TangentKernel(k.congruence(torch.ones(30, 1, 3)).factors, OutputSelection(1, 3)), torch.ones(30, 3)
            ),
        ),
        (
            ValueError,
            r"blocks: expected shape \[n, p, o\] = \[30, p, 3\], got",
            lambda k: k.congruence(torch.ones(30, 2, 2)),
        ),
        (ValueError, "samples: expected indices from 0 to 29, got 30", lambda k: k.subset(torch.tensor([1, 30]))),
        (ValueError, r"samples: expected a tensor of indices \[k\]", lambda k: k.subset(torch.ones(3))),
        (ValueError, "scale: expected a finite number of at least 0, got -1", lambda k: -1 * k),
        (TypeError, r"blocks: expected a tensor \[n, p, o\], got float", lambda k: k.congruence(2.0)),
        (TypeError, r"samples: expected a tensor of indices \[k\], got list", lambda k: k.subset([1, 2])),
        (TypeError, r"logits: expected a tensor \[n, o\], got list", lambda k: ah.fisher_kernel(k, [[1.0]])),
        (TypeError, "kernels: expected tangent kernels, got float", lambda k: ah.similarity({"fc": 0.5})),
        (ValueError, "between 0 and 1, got 'small'", lambda k: ah.eigenpairs(k, 1, tolerance="small")),
        (ValueError, "seed: expected a whole number of at least 0, got -1", lambda k: ah.eigenpairs(k, 1, seed=-1)),
        (ValueError, "seed: expected a whole number of at least 0, got 'a'", lambda k: ah.eigenpairs(k, 1, seed="a")),
        (TypeError, "unsupported operand", lambda k: k + 1),
        (ValueError, "factors: expected layers of one n and o in a group", lambda k: k + random_kernel(31)),
        (ValueError, "factors: expected layers of one dtype in a group", lambda k: k + _float32(k)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(error, message, call):
    with warnings.catch_warnings(), pytest.raises(error, match=message):
        call(random_kernel())


def _float32(kernel: ah.TangentKernel) -> ah.TangentKernel:
    (term,) = kernel.factors
    return ah.TangentKernel(ah.LayerFactors(term.forward.float(), term.backward.float(), term.bias))


@pytest.mark.parametrize("centering", ["global", "per_output"])
def test_similarity_of_layers(centering):
    model, x = networks.mlp(5, 11, 6, 3, bias=True).double(), torch.randn(40, 6, dtype=torch.float64)
    kernels = ah.tangent_kernels(model, x)
    found = ah.similarity(kernels, centering=centering)
    for i, first in enumerate(kernels.values()):
        for j, second in enumerate(kernels.values()):
            expected = reference.cka(first.to_dense(), second.to_dense(), centering, o=3)
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    later = ah.tangent_kernels(model, x)
    moved = ah.similarity(kernels, later, centering=centering)
    assert moved.shape == (5, 5)
    assert float(moved[1, 2]) == pytest.approx(ah.cka(kernels["2"], later["4"], centering=centering), rel=1e-10)
    backward = [kernel.backward_gram() for kernel in kernels.values()][:-1]
    found = ah.similarity(backward, centering=centering)
    assert torch.allclose(found.diagonal(), torch.ones(4, dtype=torch.float64))


def test_similarity_refuses():
    zero = ah.TangentKernel(
        ah.LayerFactors(torch.ones(30, 1, 2).double(), torch.zeros(30, 1, 3, 2).double(), bias=False)
    )
    with pytest.warns(ah.DegenerateKernelWarning, match="kernel is zero"):
        found = ah.similarity([random_kernel(), zero])
    assert float(found[0, 0]) == pytest.approx(1.0) and found.isnan().sum() == 3
    with pytest.raises(ValueError, match="kernels: expected at least one kernel, got none"):
        ah.similarity([])
    with pytest.raises(ValueError, match="others: expected at least one kernel, got none"):
        ah.similarity([random_kernel()], {})
    with pytest.raises(ValueError, match="other: expected a kernel of 30 samples and 3 rows for each, got 31 and 3"):
        ah.similarity([random_kernel()], [random_kernel(31)])


STATISTICS = (
    "cka",
    "forward_cka",
    "backward_cka",
    "stable_rank",
    "label_correlation",
    "fisher_stable_rank",
    "fisher_label_correlation",
)


@pytest.mark.parametrize("centering", ["global", "per_output"])
def test_statistics_in_a_report_against_dense_decompositions(centering):
    model = networks.mlp(4, 11, 6, 3, bias=True).double()
    x, y = torch.randn(25, 6, dtype=torch.float64), torch.randint(0, 3, (25,))
    with warnings.catch_warnings():
        # Per output nothing is left of the last layer's backward Gram, which is 1 between rows of the same output.
        warnings.filterwarnings("ignore", ".*6 \\(backward Gram\\)' is constant", ah.DegenerateKernelWarning)
        report = ah.layerwise_alignment(model, x, y, statistics=STATISTICS, centering=centering)
    assert list(report.statistics) == [*STATISTICS, "centered_norm", "trace"]
    p = model(x).detach().softmax(1)
    h = torch.block_diag(*(torch.diag_embed(p) - p[:, :, None] * p[:, None]))
    root = torch.linalg.eigh(h)
    root = root.eigenvectors * root.eigenvalues.clamp(min=0).sqrt() @ root.eigenvectors.T
    one_hot = torch.nn.functional.one_hot(y, 3).double()
    means = {"global": one_hot.mean(), "per_output": one_hot.mean(0)}
    targets = {one: (one_hot - mean).flatten() / (one_hot - mean).norm() for one, mean in means.items()}
    for i, kernel in enumerate(ah.tangent_kernels(model, x).values()):
        dense = kernel.to_dense()
        for prefix, matrix, label in (
            ("", reference.centered(dense, centering, o=3), targets[centering]),
            ("fisher_", root @ dense @ root, targets["global"]),
        ):
            values, vectors = torch.linalg.eigh(matrix)
            rank = float(values.square().sum() / values[-1] ** 2)
            correlation = float((values / values[-1] * (vectors.T @ label).square()).sum())
            assert float(report.statistics[f"{prefix}stable_rank"][i]) == pytest.approx(rank, rel=1e-8)
            assert float(report.statistics[f"{prefix}label_correlation"][i]) == pytest.approx(correlation, rel=1e-8)
        fisher = ah.fisher_kernel(kernel, model(x).detach())
        assert ah.stable_rank(fisher, centering=None) == pytest.approx(rank, rel=1e-8)
        assert ah.label_correlation(fisher, y, centering=None) == pytest.approx(correlation, rel=1e-8)
    alone = ah.layerwise_alignment(model, x, y, centering=centering)
    # Kernels that are measured together may be added up in another order than one alone: clang++ has another last bit.
    assert torch.allclose(report.cka, alone.cka, rtol=1e-14, atol=0) and alone.stable_rank is None


def test_estimated_statistics_in_a_report():
    model = networks.mlp(4, 30, 12, 3, bias=True)
    x, y = torch.randn(200, 12), torch.randint(0, 3, (200,))
    exact = ah.layerwise_alignment(model, x, y, statistics=STATISTICS)
    found = ah.layerwise_alignment(model, x, y, statistics=STATISTICS, products=60)
    assert exact.cka_standard_error is None
    assert ((found.cka - exact.cka).abs() <= 5 * found.cka_standard_error + 1e-5 * exact.cka).all()
    assert (found.cka_standard_error < 0.05 * exact.cka).all()
    assert torch.allclose(found.trace, exact.trace, rtol=1e-5)
    for name, column in exact.statistics.items():
        assert torch.allclose(found.statistics[name], column, rtol=0.2), name
    assert "cka standard error" in str(found)
    within = ah.layerwise_alignment(model, x, y, tolerance=0.02)
    assert ((within.cka - exact.cka).abs() <= 5 * within.cka_standard_error + 1e-5 * exact.cka).all()
    assert (within.cka_standard_error <= 0.02 * (1 + 1e-9) * within.cka).all()
    fewer = ah.layerwise_alignment(model, x, y, tolerance=1e-9, products=12)
    assert (fewer.cka_standard_error > within.cka_standard_error).all()


def test_statistics_of_layers_without_grams_and_of_dead_ones():
    model = networks.all_networks()["norms"]
    x, y = torch.randn(16, 6), torch.randint(0, 3, (16,))
    report = ah.layerwise_alignment(model, x, y, statistics=STATISTICS)
    norms = [i for i, kernel in enumerate(ah.tangent_kernels(model, x).values()) if not kernel.factored]
    assert norms
    assert report.forward_cka[norms].isnan().all() and not report.stable_rank[norms].isnan().any()
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.zero_()
    with pytest.warns(ah.DegenerateKernelWarning):
        report = ah.layerwise_alignment(model, x, y, statistics=STATISTICS)
    assert report.cka[0].isnan() and report.stable_rank[0].isnan() and report.fisher_stable_rank[0].isnan()
    assert not report.cka[-1].isnan()


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "statistics: expected a sequence of cka, .*, got 'rank'", {"statistics": ["cka", "rank"]}),
        (TypeError, "statistics: expected a sequence of cka, .*, got 'cka'", {"statistics": "cka"}),
        (
            ValueError,
            "statistics: expected those of Fisher with outputs = \"all\", got 'trace'",
            {"statistics": ["fisher_stable_rank"], "outputs": "trace"},
        ),
        (ValueError, "products: expected at least 6, got 1", {"products": 1}),
        (TypeError, "products: expected a whole number, got 'many'", {"products": "many"}),
        (ValueError, "tolerance: expected a number between 0 and 1, got 2", {"tolerance": 2}),
    ],
)
def test_bad_statistics(error, message, options):
    model, x, y = networks.mlp(2, 4, 3, 3, bias=True), torch.randn(5, 3), torch.randint(0, 3, (5,))
    with pytest.raises(error, match=message):
        ah.layerwise_alignment(model, x, y, **options)


@pytest.mark.parametrize("k", [2, 12, 50])
@pytest.mark.parametrize("copies", [3, 10, 40])
def test_copies_of_eigenvalues_are_all_found(copies, k):
    """As in a last layer, which has each once for every output; an iteration from one vector alone misses some."""
    few = torch.linspace(1, 1e-3, 600 - 2 * copies, dtype=torch.float64)
    values = torch.cat([torch.full((copies,), 3.0), torch.full((copies,), 2.0), few]).double()
    for seed in range(3):
        kernel, dense = of_spectrum(values, seed=seed)
        found = ah.eigenpairs(kernel, k, centering=None, seed=seed)
        assert (found.values - values[:k]).abs().max() <= 1e-9
        assert (dense @ found.vectors - found.vectors * found.values).norm(dim=0).max() <= 1e-9
        assert (found.vectors.T @ found.vectors - torch.eye(k)).abs().max() < 1e-9


@pytest.mark.parametrize("small", [1e-6, 1e-9, 1e-13])
def test_copies_of_small_eigenvalues_take_no_longer(small):
    """The tolerance is relative to the largest eigenvalue, beside which theirs may be no more than rounding."""
    values = torch.cat([torch.tensor([1.0, 0.5]), torch.full((40,), small), torch.full((558,), 1e-3 * small)]).double()
    kernel, dense = of_spectrum(values)
    found = ah.eigenpairs(kernel, 20, centering=None)
    assert (found.values - values[:20]).abs().max() <= 1e-10
    assert (dense @ found.vectors - found.vectors * found.values).norm(dim=0).max() <= 1e-10
    assert found.products < 500


@pytest.mark.parametrize("centering", ["global", "per_output", None])
def test_kernels_of_many_positions_are_formed_for_many_eigenpairs(monkeypatch, centering):
    """Where products with the factors cost more."""
    forward, backward = reference.factors(60, 30, 10, 40, 40)
    kernel = ah.TangentKernel(ah.LayerFactors(forward, backward, bias=True, by_jacobian=True))
    iterated = ah.eigenpairs(kernel, 150, centering=centering)
    monkeypatch.setattr(spectrum, "_MOST_DENSE_ROWS", MOST_DENSE_ROWS)
    found = ah.eigenpairs(kernel, 150, centering=centering)
    assert (found.products, iterated.products > 150) == (0, True)
    assert (found.values - iterated.values).abs().max() <= 1e-12 * found.values[0]
    assert (found.vectors.T @ found.vectors - torch.eye(150)).abs().max() < 1e-12
    images = kernel.product(found.vectors, centering=centering)
    assert (images - found.vectors * found.values).norm(dim=0).max() <= 1e-12 * found.values[0]
    assert found.residuals.max() <= 1e-12 * found.values[0]


@pytest.mark.parametrize(("s", "k"), [(30, 3), (1, 150)], ids=["few pairs", "one position"])
def test_other_kernels_are_iterated(monkeypatch, s, k):
    monkeypatch.setattr(spectrum, "_MOST_DENSE_ROWS", MOST_DENSE_ROWS)
    forward, backward = reference.factors(60, s, 10, 40, 40)
    kernel = ah.TangentKernel(ah.LayerFactors(forward, backward, bias=False, by_jacobian=s > 1))
    assert ah.eigenpairs(kernel, k).products > 0
