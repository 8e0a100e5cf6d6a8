"""TangentKernel and cka on factors: operator behaviour, degenerate kernels, and what they refuse."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from torch import Tensor

import ahkernels as ah
from ahkernels.outputs import OutputSelection


def kernel(
    n: int = 12, o: int = 3, d: int = 5, m: int = 4, *, s: int = 1, bias: bool = True, seed: int = 0
) -> tuple[ah.TangentKernel, Tensor]:
    """A kernel of random fp64 factors, and its dense reference."""
    generator = torch.Generator().manual_seed(seed)
    forward = torch.randn(n, s, d, generator=generator, dtype=torch.float64)
    backward = torch.randn(n, s, o, m, generator=generator, dtype=torch.float64)
    return ah.TangentKernel(ah.LayerFactors(forward, backward, bias)), reference.kernel(forward, backward, float(bias))


@pytest.mark.parametrize("s", [1, 3])
def test_operator(s):
    k, dense = kernel(s=s)
    assert k.shape == dense.shape == (36, 36)
    assert torch.allclose(k.to_dense(), dense)
    assert torch.allclose(k.diagonal(), dense.diagonal())
    assert k.trace() == pytest.approx(float(dense.trace()))
    assert k.frobenius_norm(centering=None) == pytest.approx(float(dense.norm()))
    assert k.frobenius_norm() == pytest.approx(float(reference.centered(dense).norm()))
    assert torch.allclose(k.row_means().flatten(), dense.mean(1))
    v = torch.randn(36, 4, dtype=torch.float64)
    assert torch.allclose(k @ v, dense @ v)
    assert torch.allclose(k @ v[:, 0], dense @ v[:, 0])
    assert (k @ v.float()).dtype == torch.float64
    assert "shape=(36, 36)" in repr(k) and "float64" in repr(k)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("positions", [(1,), (30,), (1, 7, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_forward_and_backward_gram_sum_over_positions(positions, bias, dtype):
    """Also of several layers, of which one has the positions in its columns, as convolutions have them."""
    layers, forward, backward = [], torch.zeros(9, 9).double(), torch.zeros(27, 27).double()
    for seed, s in enumerate(positions):
        a, g = reference.factors(9, s, 3, 5, 4, dtype, seed)
        a, g = a + 1, g.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        layers.append(ah.LayerFactors(a, g, bias))
        forward += reference.forward_gram(a, float(bias))
        backward += reference.backward_gram(g)
    k = ah.TangentKernel(layers)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for found, expected in ((k.forward_gram(), forward), (k.backward_gram(), backward)):
        assert {one.positions for one in found.factors} == {1}
        assert (found.to_dense() - expected).norm() <= tolerance * expected.norm()
        centered = reference.centered(expected)
        assert found.frobenius_norm() == pytest.approx(float(centered.norm()), rel=100 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alignment_of_grams_of_layers_with_and_without_positions_in_one_report(dtype):
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Flatten(1), torch.nn.Linear(24, 5), torch.nn.Linear(5, 3)
    ).to(dtype)
    x, y = torch.randn(20, 3, 6).to(dtype), torch.randint(0, 3, (20,))
    targets = torch.nn.functional.one_hot(y, 3).double()
    report = ah.layerwise_alignment(model, x, y, statistics=("forward_cka", "backward_cka"))
    for i, one in enumerate(ah.tangent_kernels(model, x, keep_factors=True).values()):
        (factors,) = one.factors
        forward = reference.forward_gram(factors.forward, float(factors.bias))
        expected = reference.cka(forward, targets @ targets.T)
        assert float(report.forward_cka[i]) == pytest.approx(expected, rel=1e-4)
        backward = reference.backward_gram(factors.backward)
        expected = reference.cka(backward, torch.outer(targets.flatten(), targets.flatten()))
        assert float(report.backward_cka[i]) == pytest.approx(expected, rel=1e-4)


def test_alignment_of_two_kernels():
    first, dense_first = kernel()
    second, dense_second = kernel(d=2, m=7, bias=False, seed=1)
    expected = reference.cka(dense_first, dense_second)
    assert ah.cka(first, second) == pytest.approx(expected)
    assert ah.cka(second, first) == pytest.approx(expected)
    assert ah.cka(first, first) == pytest.approx(1.0)


def test_alignment_is_that_of_the_outer_product_of_targets():
    k, dense = kernel()
    y = torch.randn(12, 3)
    vector = y.double().flatten()
    assert ah.cka(k, y) == pytest.approx(reference.cka(dense, torch.outer(vector, vector)))
    classes = torch.randint(0, 3, (12,))
    one_hot = torch.nn.functional.one_hot(classes, 3)
    assert ah.cka(k, classes) == ah.cka(k, one_hot)
    assert ah.cka(k, classes.to(torch.uint8)) == ah.cka(k, classes)


def test_perfect_alignment_is_one():
    y = torch.randn(20, 1, dtype=torch.float64)
    ones = torch.ones(20, 1, 1, 1, dtype=torch.float64)
    assert ah.cka(ah.TangentKernel(ah.LayerFactors(y.unsqueeze(1), ones, bias=False)), y) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "o"), [(1, 1), (9, 1), (9, 3)])
def test_zero_and_constant_kernels_have_no_alignment(n, o, dtype):
    y = torch.randn(n, o)
    zero = ah.LayerFactors(
        torch.ones(n, 1, 2, dtype=dtype), torch.zeros(n, 1, o, 2, dtype=dtype), bias=False, layer="fc"
    )
    with pytest.warns(ah.DegenerateKernelWarning, match="kernel of layer 'fc' is zero"):
        assert math.isnan(ah.cka(ah.TangentKernel(zero), y))
    forward = torch.full((n, 1, 2), 1 / 3, dtype=dtype)
    constant = ah.LayerFactors(forward, torch.full((n, 1, o, 7), 0.1, dtype=dtype), bias=True, layer="fc")
    with pytest.warns(ah.DegenerateKernelWarning, match="kernel of layer 'fc' is constant"):
        assert math.isnan(ah.cka(ah.TangentKernel(constant), y))


def test_constant_labels_have_no_alignment():
    k, _ = kernel()
    with pytest.warns(ah.DegenerateKernelWarning, match="y is the same in all rows of the kernel"):
        assert math.isnan(ah.cka(k, torch.full((12, 3), 2.0)))
    single, _ = kernel(o=1)
    with pytest.warns(ah.DegenerateKernelWarning, match="y is the same in all rows of the kernel"):
        assert math.isnan(ah.cka(single, torch.full((12, 1), 2.0)))


def test_kernels_and_labels_within_3e_7_of_constant_have_an_alignment():
    """Their deviations have squares of 1e-13, which is more than the rounding of float64."""
    x, y = torch.randn(2, 20, 1, dtype=torch.float64)
    expected = reference.cka(x @ x.T, y @ y.T)
    ones = torch.ones(20, 1, 1, 1, dtype=torch.float64)
    near_constant = ah.LayerFactors((1 + 3e-7 * x).unsqueeze(1), ones, bias=False)
    assert ah.cka(ah.TangentKernel(near_constant), y) == pytest.approx(expected, rel=1e-5)
    plain = ah.LayerFactors(x.unsqueeze(1), ones, bias=False)
    assert ah.cka(ah.TangentKernel(plain), 1 + 3e-7 * y) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("forward_scale", [1e-18, 1e18])
@pytest.mark.parametrize("backward_scale", [1e-18, 1e18])
@pytest.mark.parametrize("o", [1, 3])
def test_alignment_does_not_depend_on_scale(forward_scale, backward_scale, o):
    generator = torch.Generator().manual_seed(0)
    forward, backward = torch.randn(50, 1, 20, generator=generator), torch.randn(50, 1, o, 30, generator=generator)
    y = torch.randn(50, o, generator=generator)
    expected = ah.cka(ah.TangentKernel(ah.LayerFactors(forward.double(), backward.double(), bias=False)), y)
    scaled = ah.LayerFactors(forward * forward_scale, backward * backward_scale, bias=False)
    assert ah.cka(ah.TangentKernel(scaled), y) == pytest.approx(expected, rel=1e-5)


def test_to_dense_refuses_kernels_that_are_too_large():
    factors = ah.LayerFactors(torch.ones(1).expand(60_000, 1, 4), torch.ones(1).expand(60_000, 1, 10, 3), bias=False)
    k = ah.TangentKernel(factors)
    with pytest.raises(
        MemoryError, match=r"K \[600000, 600000\] takes 1341\.1 GiB, more than max_bytes = 8,589,934,592 \(8\.0 GiB\)"
    ):
        k.to_dense()
    small, dense = kernel()
    with pytest.raises(MemoryError, match="max_bytes"):
        small.to_dense(max_bytes=36 * 36 * 8 - 1)
    assert torch.allclose(small.to_dense(max_bytes=36 * 36 * 8), dense)


def test_to_dense_refuses_entries_beyond_fp32():
    k = ah.TangentKernel(ah.LayerFactors(torch.full((3, 1, 2), 1e18), torch.full((3, 1, 1, 2), 1e18), bias=False))
    with pytest.raises(OverflowError, match=r"an entry of K is beyond the range of torch.float32"):
        k.to_dense()
    assert k.trace() == pytest.approx(12e72)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_to_dense_in_given_memory(dtype):
    """Such as a part of that for all layers; it has no limit, since it has been given."""
    forward, backward = (factor.to(dtype) for factor in reference.factors(12, 2, 3, 5, 4, torch.float32))
    k = ah.TangentKernel(ah.LayerFactors(forward.requires_grad_(), backward, bias=True))
    cross = ah.CrossKernel(k, k.subset(torch.arange(4)))
    for one in (k, cross):
        alone = one.to_dense()
        memory = torch.full((2, *one.shape), math.nan, dtype=dtype)
        found = one.to_dense(out=memory[1], max_bytes=0)
        assert found.data_ptr() == memory[1].data_ptr()
        assert torch.equal(found, alone) and memory[0].isnan().all()
    exact = k.to_dense(out=torch.full(k.shape, math.nan, dtype=torch.float64))
    expected = reference.kernel(forward, backward, 1.0)
    assert (exact - expected).norm() <= 4e-15 * expected.norm()


def test_to_dense_refuses_memory_that_does_not_fit():
    k, _ = kernel(s=2)
    (factors,) = k.factors
    for out, message in (
        (torch.empty(36, 35).double(), r"contiguous tensor \[36, 36\], got \[36, 35\]"),
        (torch.empty(36, 72).double()[:, ::2], r"contiguous tensor \[36, 36\], got \[36, 36\] that is not contiguous"),
        (torch.empty(36, 36), "a tensor of torch.float64, got torch.float32"),
        (torch.empty(36, 36, device="meta").double(), "a tensor on cpu, got one on meta"),
        (torch.empty(36, 36).double().requires_grad_(), "requires no gradient"),
    ):
        with pytest.raises(ValueError, match=f"out: expected .*{message}"):
            k.to_dense(out=out)
    with pytest.raises(TypeError, match=r"out: expected a tensor \[36, 36\], got list"):
        k.to_dense(out=[[1.0]])
    memory = torch.zeros(12 * 2 * 3 * 4 + 36 * 36, dtype=torch.float64)
    backward = memory[: 12 * 2 * 3 * 4].view(12, 2, 3, 4).copy_(factors.backward)
    shared = ah.TangentKernel(ah.LayerFactors(factors.forward, backward, bias=True))
    assert torch.equal(shared.to_dense(out=memory[-36 * 36 :].view(36, 36)), k.to_dense())
    for one in (shared, ah.CrossKernel(shared, shared)):
        with pytest.raises(ValueError, match="out: expected memory of its own"):
            one.to_dense(out=memory[12 * 2 * 3 * 4 - 1 : -1].view(36, 36))


A, G = torch.ones(4, 1, 3), torch.ones(4, 1, 2, 5)


@pytest.mark.parametrize(
    ("forward", "backward", "message"),
    [
        (torch.ones(4, 3), G, r"forward of layer 'fc': expected shape \[n, s, d\], got \[4, 3\]"),
        (A, torch.ones(4, 2, 5), r"backward of layer 'fc': expected shape \[n, s, o, m\], got \[4, 2, 5\]"),
        (A, torch.ones(4, 2, 2, 5), r"expected n and s of forward, \[4, 1\], got \[4, 2\]"),
        (torch.ones(0, 1, 3), torch.ones(0, 1, 2, 5), r"expected n, s and o of at least 1, got \[0, 1, 2\]"),
        (A, G.double(), "one real floating dtype, got torch.float32 and torch.float64"),
        (A.int(), G.int(), "one real floating dtype, got torch.int32"),
        (A, G.to("meta"), "expected the device of forward, cpu, got meta"),
        (A * math.nan, G, "forward factor of layer 'fc': expected finite numbers, got nan or inf"),
        (A, G * math.inf, "backward factor of layer 'fc': expected finite numbers, got nan or inf"),
    ],
)
def test_bad_factors(forward, backward, message):
    with pytest.raises(ValueError, match=message):
        ah.LayerFactors(forward, backward, bias=False, layer="fc")


def test_finite_factors_near_the_range_of_the_dtype():
    ah.LayerFactors(torch.tensor([3e38, -3e38, 0.0]).view(1, 1, 3), torch.ones(1, 1, 1, 1), bias=False)


def test_bad_operands():
    k, _ = kernel()
    with pytest.raises(ValueError, match=r"v: expected shape \[36\] or \[36, columns\], got \[35\]"):
        k @ torch.ones(35)
    with pytest.raises(ValueError, match="other: expected a kernel of 12 samples and 3 rows for each, got 11 and 3"):
        ah.cka(k, kernel(n=11)[0])
    single = ah.TangentKernel(ah.LayerFactors(torch.ones(12, 1, 3), torch.ones(12, 1, 3, 5), bias=False))
    with pytest.raises(ValueError, match=r"other: expected the dtype of kernel, torch\.float64, got torch\.float32"):
        ah.cka(k, single)
    with pytest.raises(TypeError, match="y: expected a tensor of class indices"):
        ah.cka(k, [0] * 12)
    with pytest.raises(ValueError, match="outputs: expected 3 rows for each sample, as in factors, got 1"):
        ah.TangentKernel(k.factors[0], OutputSelection("trace", 3))
