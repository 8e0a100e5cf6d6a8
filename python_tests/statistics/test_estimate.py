"""Estimates of norms and alignments, and whether their error bars hold, against dense fp64 kernels."""

from __future__ import annotations

import math

import networks
import pytest
import reference
import torch
from test_spectrum import of_spectrum, random_kernel, spectra

import ahkernels as ah
from ahkernels.samples import Samples
from ahkernels.statistics.leave_one_out import Sketch


@pytest.mark.parametrize("centering", ["global", "per_output", None])
@pytest.mark.parametrize("name", list(spectra()))
def test_norm_of_hard_spectra(name, centering):
    kernel, dense = of_spectrum(spectra()[name])
    exact = float(reference.centered(dense, centering, o=2).norm())
    found = [ah.estimate_frobenius_norm(kernel, centering=centering, products=60, seed=seed) for seed in range(20)]
    low, high = zip(*(one.interval() for one in found), strict=True)
    rounding = 1e-12 * exact  # of what has no error bar: a kernel of rank 5 is all in the basis
    assert sum(a - rounding <= exact <= b + rounding for a, b in zip(low, high, strict=True)) >= 16
    mean = sum(one.value for one in found) / len(found)
    spread = sum(one.standard_error for one in found) / len(found) / math.sqrt(len(found))
    assert mean == pytest.approx(exact, rel=1e-10, abs=4 * spread)
    assert all(one.products == 60 and one.samples == 20 for one in found)


def test_error_bars_hold_in_as_many_cases_as_they_say():
    kernel, dense = of_spectrum(1.0 / torch.arange(1, 601, dtype=torch.float64))
    exact = float(reference.centered(dense).norm())
    found = [ah.estimate_frobenius_norm(kernel, products=30, seed=seed) for seed in range(100)]
    within = sum(low <= exact <= high for low, high in (one.interval(0.9) for one in found))
    assert 81 <= within <= 98
    errors = torch.tensor([one.value - exact for one in found])
    stated = torch.tensor([one.standard_error for one in found])
    assert 0.7 < float(errors.square().mean().sqrt() / stated.square().mean().sqrt()) < 1.4


def test_more_products_give_smaller_errors():
    kernel, _ = of_spectrum(1.0 / torch.arange(1, 601, dtype=torch.float64))
    errors = [ah.estimate_frobenius_norm(kernel, products=count).standard_error for count in (12, 48, 192)]
    assert errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3


@pytest.mark.parametrize("centering", ["global", "per_output"])
@pytest.mark.parametrize("outputs", ["all", "trace", "sum", 1])
def test_alignment(outputs, centering):
    model, x = networks.mlp(4, 30, 12, 3, bias=True).double(), torch.randn(150, 12, dtype=torch.float64)
    y = torch.randint(0, 3, (150,))
    for kernel in ah.tangent_kernels(model, x, outputs=outputs).values():
        exact = ah.cka(kernel, y, centering=centering)
        found = ah.estimate_cka(kernel, y, products=60, centering=centering)
        assert abs(found.value - exact) <= 5 * found.standard_error + 1e-10 * exact
        assert found.standard_error < 0.05 * exact
        assert ah.estimate_cka(kernel, y, products=60, centering=centering) == found  # same seed
        assert ah.estimate_cka(kernel, y, products=60, centering=centering, seed=1) != found


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_float32_factors_of_any_scale(scale):
    a, g = reference.factors(80, 1, 3, 20, 30, torch.float32)
    kernel = ah.TangentKernel(ah.LayerFactors(scale * a, scale * g, bias=False))
    exact = float(reference.centered(reference.kernel(scale * a, scale * g, 0.0)).norm())
    found = ah.estimate_frobenius_norm(kernel)
    assert abs(found.value - exact) <= 5 * found.standard_error
    assert found.standard_error < 0.05 * exact


HARD = {
    "flat": torch.ones(600),
    "i^-1/2": torch.arange(1, 601) ** -0.5,
    "i^-2": torch.arange(1, 601) ** -2.0,
    "geometric": 0.9 ** torch.arange(600),
    "40 large": torch.cat([torch.full((40,), 3.0), torch.full((560,), 0.05)]),
    **spectra(),
}


@pytest.mark.parametrize("count", [30, 60])
@pytest.mark.parametrize("name", [name for name in HARD if name not in ("rank 5", "clustered", "condition 1")])
def test_error_bars_over_many_seeds(name, count):
    """Of a diagonal operator, whose products are cheap: the 95% interval holds the norm in 91 to 98 of 100 cases."""
    values = HARD[name].double()
    exact = float(values.norm())
    within, squares, stated = 0, 0.0, 0.0
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        sketch = Sketch(
            lambda v: values[:, None] * v,
            lambda columns, generator=generator: torch.randn(600, columns, generator=generator, dtype=torch.float64),
            Samples(600),
        )
        sketch.grow(count // 2)
        square = sketch.squared_norm()
        norm = math.sqrt(square.value)
        one = ah.Estimate(norm, square.standard_error / (2 * norm), count, count // 3)
        low, high = one.interval()
        within += low <= exact <= high
        squares += (norm - exact) ** 2
        stated += one.standard_error**2
    assert 0.91 * 300 <= within <= 0.985 * 300
    assert 0.75 < math.sqrt(squares / stated) < 1.3


def test_the_error_is_smaller_than_by_three_equal_parts():
    """Of the products: a third for a basis, a third for its image and a third for the error bar (Hutch++)."""
    values = 1.0 / torch.arange(1, 601, dtype=torch.float64)
    exact = float(values.square().sum())
    leave_one_out, in_parts = [], []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        sketch = Sketch(
            lambda v: values[:, None] * v,
            lambda columns, generator=generator: torch.randn(600, columns, generator=generator, dtype=torch.float64),
            Samples(600),
        )
        sketch.grow(15)
        leave_one_out.append(sketch.squared_norm().value - exact)
        w = torch.randn(600, 20, generator=generator, dtype=torch.float64)
        q, _ = torch.linalg.qr(values[:, None] * w[:, :10])
        image = values[:, None] * q
        rest = values[:, None] * w[:, 10:] - image @ (q.T @ w[:, 10:])
        rest = rest - q @ (q.T @ rest)
        square = 2 * image.square().sum() - (q.T @ image).square().sum() + rest.square().sum(0).mean()
        in_parts.append(float(square) - exact)
    errors = [math.sqrt(sum(one**2 for one in found)) for found in (leave_one_out, in_parts)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("size", [3, 8])
def test_estimates_are_those_of_bases_without_one_vector(size):
    """From small matrices, against each basis formed anew."""
    generator = torch.Generator().manual_seed(size)
    root = torch.randn(30, 30, generator=generator, dtype=torch.float64)
    a = root @ root.T / torch.arange(1, 31) ** 2
    a = (a + a.T) / 2
    drawn = []

    def random(columns):
        drawn.append(torch.randn(30, columns, generator=generator, dtype=torch.float64))
        return drawn[-1]

    sketch = Sketch(lambda v: a @ v, random, Samples(30))
    for part in (size // 2, size):
        sketch.grow(part)
    w = torch.cat(drawn, 1)

    def estimate(i, without):
        q, _ = torch.linalg.qr(a @ w[:, [j for j in range(size) if j not in without]])
        rest = w[:, i] - q @ (q.T @ w[:, i])
        rest = a @ rest
        rest = rest - q @ (q.T @ rest)
        return float(2 * (a @ q).square().sum() - (q.T @ a @ q).square().sum() + rest.square().sum())

    alone = [estimate(i, {i}) for i in range(size)]
    changes = [[alone[i] - estimate(i, {i, j}) for j in range(size)] for i in range(size)]
    pairs = [changes[i][j] * changes[j][i] for i in range(size) for j in range(size) if i != j]
    variance = float(torch.tensor(alone).double().var()) / size + max(0.0, sum(pairs) / len(pairs))
    found = sketch.squared_norm()
    assert found.value == pytest.approx(sum(alone) / size, rel=1e-10)
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-6)


def test_a_tolerance_out_of_reach_ends_in_the_exact_norm():
    kernel, dense = of_spectrum(torch.ones(300, dtype=torch.float64))
    found = ah.estimate_frobenius_norm(kernel, tolerance=1e-12)
    assert found.value == pytest.approx(float(reference.centered(dense).norm()), rel=1e-10)
    assert found.standard_error == 0


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 0.003])
def test_products_are_added_until_the_tolerance_is_reached(tolerance):
    kernel, dense = of_spectrum(1.0 / torch.arange(1, 601, dtype=torch.float64))
    exact = float(reference.centered(dense).norm())
    found = ah.estimate_frobenius_norm(kernel, tolerance=tolerance)
    assert found.relative_error <= tolerance
    assert abs(found.value - exact) <= 4 * found.standard_error
    fewer = ah.estimate_frobenius_norm(kernel, products=found.products)
    assert fewer.products == found.products
    most = ah.estimate_frobenius_norm(kernel, tolerance=1e-9, products=40)
    assert most.products <= 40 and most.relative_error > 1e-9
    y = torch.randint(0, 2, (300,))
    alignment = ah.estimate_cka(kernel, y, tolerance=tolerance)
    assert alignment.relative_error <= tolerance * (1 + 1e-12)


def test_fewer_rows_than_products_are_exact():
    kernel = random_kernel(5)
    found = ah.estimate_frobenius_norm(kernel)
    assert found.value == pytest.approx(kernel.frobenius_norm(), rel=1e-12)
    assert found.standard_error < 1e-12 * found.value


def test_degenerate_kernels():
    y = torch.randint(0, 3, (30,))
    zero = ah.TangentKernel(ah.LayerFactors(torch.ones(30, 1, 2), torch.zeros(30, 1, 3, 2), bias=False))
    constant = ah.TangentKernel(ah.LayerFactors(torch.ones(30, 1, 2), torch.ones(30, 1, 3, 2), bias=False))
    assert ah.estimate_frobenius_norm(zero).value == 0
    assert ah.estimate_frobenius_norm(constant).value < 1e-6 * constant.frobenius_norm(centering=None)
    for kernel, found in ((zero, "zero"), (constant, "constant")):
        with pytest.warns(ah.DegenerateKernelWarning, match=f"kernel is {found}"):
            assert math.isnan(ah.estimate_cka(kernel, y).value)
    with pytest.warns(ah.DegenerateKernelWarning, match="y is the same"):
        assert math.isnan(ah.estimate_cka(random_kernel(), torch.ones(30, 3)).value)


def test_estimate_in_words():
    estimate = ah.Estimate(2.0, 0.01, 90, 30)
    assert str(estimate) == "2 ± 0.01"
    assert estimate.interval(0.95) == pytest.approx((1.97955, 2.02045), abs=1e-5)  # 2.045 standard errors
    with pytest.raises(ValueError, match="confidence: expected a number between 0 and 1, got 95"):
        estimate.interval(95)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "products: expected at least 6, got 5", {"products": 5}),
        (TypeError, "products: expected a whole number, got 30.0", {"products": 30.0}),
        (TypeError, "products: expected a whole number, got True", {"products": True}),
        (TypeError, "seed: expected a whole number, got None", {"seed": None}),
        (TypeError, "tolerance: expected a number between 0 and 1, got 'small'", {"tolerance": "small"}),
        (ValueError, "tolerance: expected a number between 0 and 1, got 1", {"tolerance": 1}),
    ],
)
def test_bad_input(error, message, options):
    with pytest.raises(error, match=message):
        ah.estimate_frobenius_norm(random_kernel(), **options)
    with pytest.raises(error, match=message):
        ah.estimate_cka(random_kernel(), torch.zeros(30, dtype=torch.long), **options)
