"""Estimates of norms and alignments, and whether their error bars hold, against dense fp64 kernels."""

from __future__ import annotations

import math

import networks
import pytest
import reference
import torch
from test_spectrum import of_spectrum, random_kernel, spectra

import ahkernels as ah


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
    found = [ah.estimate_frobenius_norm(kernel, products=30, seed=seed) for seed in range(300)]
    within = sum(low <= exact <= high for low, high in (one.interval(0.9) for one in found))
    assert 0.83 * 300 <= within <= 0.96 * 300
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
    ],
)
def test_bad_input(error, message, options):
    with pytest.raises(error, match=message):
        ah.estimate_frobenius_norm(random_kernel(), **options)
    with pytest.raises(error, match=message):
        ah.estimate_cka(random_kernel(), torch.zeros(30, dtype=torch.long), **options)
