"""A property-based search: on whatever factors are drawn, every op is off by no more than rounding.

HYPOTHESIS_PROFILE=long draws a hundred times as many, and others each time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ahkernels import ops
from ahkernels.ops import TILING, KernelBatch, plain

settings.register_profile(
    "short", max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.register_profile("long", max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
search = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

IMPLEMENTATIONS = [pytest.param(ops, id="kernels"), pytest.param(plain, id="plain torch")]
PANEL = TILING["panel"]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROUNDING_OF_FLOAT64 = 1e-13
ROWS = 200  # n s o, which the fp64 reference takes a few milliseconds for


def numbers(draw: st.DrawFn, sizes: tuple[int, ...], dtype: torch.dtype, scale: float) -> Tensor:
    """Random numbers with any strides: transposed, with gaps, expanded, overlapping."""
    strides, stride = [0] * len(sizes), draw(st.sampled_from([1, 1, 2]))
    for dim in draw(st.permutations(range(len(sizes)))):
        strides[dim] = stride
        stride *= max(1, sizes[dim])
    for dim in range(len(sizes)):
        strides[dim] = draw(st.sampled_from([strides[dim]] * 6 + [0, 1]))
    reach = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True) if size)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    memory = torch.randn(3 + reach, generator=generator, dtype=torch.float64)
    if draw(st.sampled_from([False] * 5 + [True])):
        memory = memory * (torch.rand(memory.shape, generator=generator) < 0.3)
    factor = (memory * scale).to(dtype).as_strided(sizes, strides, 3)
    return torch._neg_view(factor) if draw(st.sampled_from([False] * 9 + [True])) else factor


@dataclass(frozen=True)
class Drawn:
    """Kernels, and with them in fp64 what they are and the sums of the magnitudes of the terms of their entries."""

    batch: KernelBatch

    def parts(self) -> list[tuple[Tensor, Tensor]]:
        """Each kernel, and its magnitudes."""
        found = []
        for layers in self.batch.kernels():
            of_layers = [reference.kernel(one.forward, one.backward, one.bias) for one in layers]
            reach = [reference.kernel(one.forward.abs(), one.backward.abs(), one.bias) for one in layers]
            found.append((sum(of_layers), sum(reach)))
        return found

    @property
    def rounding(self) -> float:
        """As a part of the magnitudes; of sums of d m s terms in float64, one after the other."""
        return ROUNDING_OF_FLOAT64 if self.batch.dtype == torch.float64 else 64 * torch.finfo(torch.float32).eps


@st.composite
def drawn(draw: st.DrawFn, most_kernels: int = 1) -> Drawn:
    dtype = draw(st.sampled_from(DTYPES))
    n = draw(st.sampled_from([1, 2, 3, 20, PANEL - 1, PANEL, PANEL + 1, 2 * PANEL + 5]))
    o = draw(st.integers(1, max(1, min(7, ROWS // n))))
    forward, backward, bias, by_jacobian, layers = [], [], [], [], []
    for _ in range(draw(st.integers(1, most_kernels))):
        layers.append(draw(st.integers(1, 3)))
        for _ in range(layers[-1]):
            s = draw(st.integers(1, max(1, min(5, ROWS // (n * o)))))
            d, m = draw(st.integers(0, 40)), draw(st.integers(0, 40))
            if backward and backward[-1].shape[1] == s and draw(st.booleans()):
                backward.append(shared(draw, backward[-1]))  # at its extreme, so that fp32 holds the kernel's entries
            else:
                extreme = 0 if dtype == torch.float16 else draw(st.sampled_from([0, 0, 0, 17, -17]))
                relative = 0 if dtype == torch.float16 else draw(st.sampled_from([0, 0, 8, -8]))
                backward.append(numbers(draw, (n, s, o, m), dtype, 10.0 ** (relative - extreme)))
            forward.append(numbers(draw, (n, s, d), dtype, 10.0**extreme))
            bias.append(draw(st.sampled_from([0.0, 1.0, 0.25])))
            by_jacobian.append(draw(st.booleans()))
    return Drawn(KernelBatch(forward, backward, bias, by_jacobian, layers))


def shared(draw: st.DrawFn, factor: Tensor) -> Tensor:
    """The same memory, as it is or with one of its strides zero."""
    strides = list(factor.stride())
    strides[draw(st.integers(0, 3))] *= draw(st.integers(0, 1))
    return factor.as_strided(factor.shape, strides)


def vectors(n: int, o: int, columns: int, seed: int) -> Tensor:
    """Every other one is no contiguous tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(columns, n, o, generator=generator, dtype=torch.float64).permute(1, 2, 0)


def assert_close(got: Tensor, expected: Tensor, reach: Tensor, rounding: float) -> None:
    """Up to rounding of sums of such magnitudes, of which fp32 loses what is far below the largest."""
    assert got.shape == expected.shape
    bound = rounding * reach + 1e-30 * reach.max() + torch.finfo(torch.float32).tiny
    assert bool(((got == expected) | ((got - expected).abs() <= bound)).all())


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@search
@given(drawn(), st.booleans())
def test_gram(op, case, in_float64):
    ((k, reach),) = case.parts()
    if in_float64:
        got = torch.full(k.shape, torch.nan, dtype=torch.float64)
        if op is ops:
            ops.tangent_gram(case.batch, "high", got)
        else:
            plain.tangent_gram_out(case.batch, "high", got)
        assert_close(got, k, reach, ROUNDING_OF_FLOAT64)
    else:
        got = op.tangent_gram(case.batch, "highest")
        assert_close(got, k.to(got.dtype), reach, case.rounding)  # infinite where fp32 has no such number
    assert torch.equal(got, got.T)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@search
@given(drawn(), st.sampled_from([1, 2, 17]), st.integers(0, 1000))
def test_thin_products(op, case, columns, seed):
    ((k, reach),) = case.parts()
    n, o = case.batch.n, case.batch.o
    v = vectors(n, o, columns, seed)
    of_rows, of_reach = v.flatten(0, 1), v.abs().flatten(0, 1)
    product, product_reach = (k @ of_rows).view_as(v), (reach @ of_reach).view_as(v)
    assert_close(op.tangent_product(case.batch, v), product, product_reach, 1e-13)
    assert_close(op.tangent_product(case.batch, v, True), product, product_reach, case.rounding)
    forms, forms_reach = (v * product).sum((0, 1)), (v.abs() * product_reach).sum((0, 1))
    assert_close(op.tangent_quadratic(case.batch, v), forms, forms_reach, 1e-13)
    exact = case.rounding if o > 1 else 1e-13
    assert_close(op.tangent_row_sums(case.batch), k.sum(1).view(n, o), reach.sum(1).view(n, o), exact)
    diagonal, diagonal_reach = k.diagonal().view(n, o), reach.diagonal().view(n, o)
    assert_close(op.tangent_diagonal(case.batch), diagonal, diagonal_reach, 1e-13)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@search
@given(st.data())
def test_cross_products(op, data):
    case = data.draw(drawn())
    k, reach = case.parts()[0]
    n, o = case.batch.n, case.batch.o
    taken = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=60))
    rows = case.batch._replace(
        forward=[a[taken] for a in case.batch.forward], backward=[g[taken] for g in case.batch.backward]
    )
    v = vectors(n, o, 2, data.draw(st.integers(0, 1000)))
    product, product_reach = (k @ v.flatten(0, 1)).view_as(v), (reach @ v.abs().flatten(0, 1)).view_as(v)
    got = op.tangent_cross_product(rows, case.batch, v)
    assert_close(got, product[taken], product_reach[taken], 1e-13)


def assert_inner_products(got: Tensor, centered: list[Tensor], reach: list[Tensor], rounding: float) -> None:
    expected = torch.stack([torch.stack([(one * other).sum() for other in centered]) for one in centered])
    norms = torch.stack([one.norm() for one in reach])
    assert got.shape == expected.shape
    assert bool(((got - expected).abs() <= rounding * norms[:, None] * norms).all())


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@search
@given(drawn(most_kernels=3))
def test_inner_products(op, case):
    ks, reach = zip(*case.parts(), strict=True)
    n, o = case.batch.n, case.batch.o
    means = [torch.stack([k.mean(1)] * 2, 1)[:, 0].view(n, o) for k in ks]  # not contiguous
    got = op.centered_inner_products(case.batch, means, "highest")
    assert_inner_products(got, [reference.centered(k) for k in ks], reach, case.rounding)
    both = op.per_output_inner_products(case.batch, "highest")
    for found, centering in zip(both, ("global", "per_output"), strict=True):
        assert_inner_products(found, [reference.centered(k, centering, o) for k in ks], reach, case.rounding)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@search
@given(st.data())
def test_inner_products_of_some_pairs(op, data):
    case = data.draw(drawn(most_kernels=2))
    ks, reach = zip(*case.parts(), strict=True)
    n, o = case.batch.n, case.batch.o
    second_begin = PANEL * data.draw(st.integers(0, (n - 1) // PANEL))
    first_end = data.draw(st.integers(1, second_begin)) if second_begin else n
    means = [(k.mean(1) - k.mean() / 2).view(n, o, 1) for k in ks]
    got = op.pair_inner_products(case.batch, means, "highest", first_end, second_begin)
    pairs = [
        (k - c.view(-1, 1) - c.view(1, -1))[: first_end * o, second_begin * o :] for k, c in zip(ks, means, strict=True)
    ]
    times = 2 if second_begin else 1
    assert_inner_products(got / times, pairs, reach, 4 * case.rounding)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@search
@given(drawn(most_kernels=3).filter(lambda case: case.batch.o > 1), st.booleans(), st.integers(0, 1000))
def test_moments(op, case, per_output, seed):
    n, o = case.batch.n, case.batch.o
    v = vectors(n, o, 1, seed)
    of_rows = v.flatten()
    centerings = ("global", "per_output") if per_output else ("global",)
    for moments, centering in zip(op.tangent_moments(case.batch, v, "highest", per_output), centerings, strict=True):
        for got, (k, reach) in zip(moments.stacked(), case.parts(), strict=True):
            c, size = reference.centered(k, centering, o), reach.norm()
            entries = k.sum() if centering == "global" else k.view(n, o, n, o).diagonal(dim1=1, dim2=3).sum()
            expected = torch.stack((of_rows @ c @ of_rows, c.square().sum(), k.trace(), entries))
            bound = torch.stack((of_rows.square().sum() * size, size**2, size * n * o, size * n * o))
            assert bool(((got - expected).abs() <= case.rounding * bound).all())
