"""Kernels between two sample sets, and kernel ridge regression, against dense fp64 algebra."""

from __future__ import annotations

import math

import networks
import pytest
import reference
import torch
from test_spectrum import of_spectrum, random_kernel, spectra

import ahkernels as ah

OUTPUTS = ["all", "trace", "sum", 1, [2, 0]]


def both(name: str, outputs, n: int = 23, others: int = 9, **options):
    """Kernels of the whole network at two sample sets, and the dense kernel at all samples."""
    model = networks.all_networks()[name].double()
    x = torch.randn(n + others, 6, dtype=torch.float64)
    options = {"layers": {"network": "*"}, "outputs": outputs, "keep_factors": True, **options}
    kernels = [ah.tangent_kernels(model, part, **options)["network"] for part in (x[:n], x[n:], x)]
    return kernels[0], kernels[1], kernels[2].to_dense()


@pytest.mark.parametrize("outputs", OUTPUTS, ids=str)
@pytest.mark.parametrize("name", ["bias", "shared with bias", "residual", "tokens"])
def test_cross_kernels(name, outputs):
    first, second, dense = both(name, outputs)
    rows = first.shape[0]
    cross = ah.CrossKernel(first, second)
    expected = dense[:rows, rows:]
    assert cross.shape == expected.shape
    assert (cross.to_dense() - expected).norm() <= 1e-13 * dense.norm()
    assert (cross.T.to_dense() - expected.T).norm() <= 1e-13 * dense.norm()
    v = torch.randn(cross.shape[1], 3, dtype=torch.float64)
    assert (cross @ v - expected @ v).norm() <= 1e-13 * dense.norm() * v.norm()
    assert (cross @ v[:, 0] - expected @ v[:, 0]).norm() <= 1e-13 * dense.norm() * v.norm()
    assert "'network', shape=" in repr(cross)


@pytest.mark.parametrize("by_jacobian", [False, True])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_dense_cross_kernels_of_float32_factors(scale, by_jacobian):
    a, g = reference.factors(40, 3, 2, 7, 5, torch.float32)
    a = scale * a
    expected = reference.kernel(a, g, 1.0)[: 2 * 25, 2 * 25 :]
    parts = (slice(None, 25), slice(25, None))
    first, second = (ah.TangentKernel(ah.LayerFactors(a[p], g[p], True, by_jacobian=by_jacobian)) for p in parts)
    found = ah.CrossKernel(first, second).to_dense()
    assert found.dtype == torch.float32
    assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_anything_but_kernels_is_refused():
    y = torch.arange(30) % 3
    for call in (
        lambda kernel: ah.kernel_regression(kernel, y, ridge=1.0),
        lambda kernel: ah.kernel_regression(random_kernel(), y, ridge=1.0).predict(kernel),
        lambda kernel: ah.estimate_cka(kernel, y),
        ah.estimate_frobenius_norm,
        lambda kernel: ah.eigenpairs(kernel, 3),
        ah.stable_rank,
        lambda kernel: ah.label_correlation(kernel, y),
        lambda kernel: ah.fisher_kernel(kernel, torch.ones(30, 3)),
        lambda kernel: ah.cka(kernel, y),
    ):
        with pytest.raises(TypeError, match="kernel: expected a tangent kernel, got Tensor"):
            call(torch.eye(90))
    for kernel in (random_kernel(), ah.CrossKernel(random_kernel(), random_kernel())):
        with pytest.raises(TypeError, match=r"v: expected a tensor .*, got list"):
            kernel @ [1.0]


def test_cross_kernels_refuse():
    kernel = random_kernel()
    with pytest.raises(TypeError, match="columns: expected a tangent kernel, got Tensor"):
        ah.CrossKernel(kernel, torch.ones(3))
    with pytest.raises(ValueError, match="columns: expected the layer of rows, fc0, got fc1"):
        ah.CrossKernel(kernel, random_kernel(seed=1))
    with pytest.raises(ValueError, match="columns: expected 1 layers, as in rows, got 2"):
        ah.CrossKernel(kernel, kernel + kernel)
    with pytest.raises(ValueError, match="columns: expected the bias of rows, True, got False"):
        ah.CrossKernel(kernel, random_kernel(bias=False))
    with pytest.raises(ValueError, match=r"columns: expected outputs = 'all', got 'trace'"):
        ah.CrossKernel(kernel, kernel.forward_gram())
    term = kernel.factors[0]
    as_jacobian = torch.einsum("xsom,xsd->xomd", term.backward, term.forward).flatten(2).unsqueeze(1)
    jacobian = ah.TangentKernel(ah.LayerFactors(as_jacobian.new_empty(30, 1, 0), as_jacobian, True, layer="fc0"))
    with pytest.raises(
        ValueError, match=r"expected the numbers d and m .*\(5, 4\), got \(0, 20\); capture both kernels"
    ):
        ah.CrossKernel(kernel, jacobian)
    cross = ah.CrossKernel(kernel, kernel.subset(torch.arange(4)))
    with pytest.raises(ValueError, match=r"v: expected shape \[12\] or \[12, columns\], got \[90\]"):
        cross @ torch.ones(90)
    with pytest.raises(MemoryError, match=r"to_dense: K \[90, 12\] takes"):
        cross.to_dense(max_bytes=100)
    huge = ah.TangentKernel(ah.LayerFactors(torch.full((2, 1, 3), 1e15), torch.full((2, 1, 1, 3), 1e15), False))
    with pytest.raises(OverflowError, match=r"to_dense: an entry of K is beyond the range of torch.float32"):
        ah.CrossKernel(huge, huge).to_dense()


@pytest.mark.parametrize("rank", [0, 30])
@pytest.mark.parametrize("outputs", OUTPUTS, ids=str)
def test_regression_against_dense_algebra(outputs, rank):
    train, test, dense = both("bias", outputs, n=60, others=11)
    y, rows = torch.randint(0, 3, (60,)), train.shape[0]
    targets = train.outputs.labels(y, 60)
    right = targets if train.outputs.per_sample else targets.reshape(-1, 1)
    ridge = 1e-3 * train.trace() / rows
    expected = torch.linalg.solve(dense[:rows, :rows] + ridge * torch.eye(rows, dtype=torch.float64), right)
    fit = ah.kernel_regression(train, y, ridge=ridge, tolerance=1e-11, rank=rank)
    assert fit.residual <= 1e-11
    assert fit.coefficients.shape == targets.shape
    assert (fit.coefficients.reshape(expected.shape) - expected).norm() <= 1e-8 * expected.norm()
    predicted = (dense[rows:, :rows] @ expected).reshape(11, -1)
    assert (fit.predict(test) - predicted).norm() <= 1e-8 * predicted.norm()


@pytest.mark.parametrize("name", list(spectra()))
def test_regression_on_hard_spectra(name):
    kernel, dense = of_spectrum(spectra()[name])
    y = torch.randn(300, 2)
    expected = torch.linalg.solve(dense + 1e-3 * torch.eye(600, dtype=torch.float64), y.double().reshape(-1, 1))
    fit = ah.kernel_regression(kernel, y, ridge=1e-3, tolerance=1e-11)
    error = fit.coefficients.reshape(-1, 1) - expected
    assert error.norm() <= 1.1e-11 * y.norm() / 1e-3  # residual over smallest eigenvalue
    assert (dense @ error).norm() <= 1e-8 * (dense @ expected).norm()


def test_the_preconditioner_saves_products():
    kernel, _ = of_spectrum(10.0 ** -(torch.arange(600, dtype=torch.float64) / 20))
    y = torch.randn(300, 2)
    plain, preconditioned = (
        ah.kernel_regression(kernel, y, ridge=1e-6, rank=rank, max_iterations=10_000) for rank in (0, 130)
    )
    assert preconditioned.products < plain.products / 2


def test_zero_and_constant_kernels():
    y = torch.randint(0, 3, (30,))
    zero = ah.TangentKernel(ah.LayerFactors(torch.ones(30, 1, 2), torch.zeros(30, 1, 3, 2), bias=False))
    fit = ah.kernel_regression(zero, y, ridge=2.0)
    assert torch.allclose(fit.coefficients, torch.nn.functional.one_hot(y, 3).double() / 2)
    constant = ah.TangentKernel(ah.LayerFactors(torch.ones(30, 1, 2), torch.ones(30, 1, 3, 2), bias=False))
    fit = ah.kernel_regression(constant, y, ridge=1e-8)
    assert torch.allclose(fit.predict(constant), torch.full((30, 3), 1 / 3, dtype=torch.float64))
    assert ah.kernel_regression(random_kernel(), torch.zeros(30, 3), ridge=1.0).residual == 0


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "ridge: expected a finite positive number, got 0", {"ridge": 0}),
        (ValueError, "ridge: expected a finite positive number, got inf", {"ridge": math.inf}),
        (ValueError, "ridge: expected a finite positive number, got None", {"ridge": None}),
        (ValueError, "tolerance: expected a number between 0 and 1, got 1", {"tolerance": 1}),
        (ValueError, "rank: expected a whole number of at least 0, got 1.5", {"rank": 1.5}),
        (ValueError, "seed: expected a whole number of at least 0, got 'a'", {"seed": "a"}),
        (ValueError, "max_iterations: expected a positive whole number, got 0", {"max_iterations": 0}),
        (ValueError, "y: expected 30 class indices", {"y": torch.zeros(3, dtype=torch.long)}),
        (RuntimeError, "expected a residual of at most 1.0e-06 after max_iterations = 1", {"max_iterations": 1}),
    ],
)
def test_bad_input(error, message, options):
    arguments = {"y": torch.arange(30) % 3, "ridge": 1e-8, "rank": 0, **options}
    with pytest.raises(error, match=message):
        ah.kernel_regression(random_kernel(), **arguments)
