"""Every op against the fp64 reference, for the compiled kernels and for plain torch."""

from __future__ import annotations

import functools
import itertools
import math
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import reference
import torch
from batches import kernels, one_layer
from on_device import OnDevice, devices
from reference import factors, row_means
from torch import Tensor

from ahkernels import ops
from ahkernels.factors import LayerFactors
from ahkernels.ops import plain
from ahkernels.precision import products_in_float32, resolve_precision
from benchmarks.common import memory

IMPLEMENTATIONS = [
    pytest.param(ops, id="kernels"),
    pytest.param(plain, id="plain torch"),
    *(pytest.param(OnDevice(ops, device), id=f"kernels on {device}") for device in devices()),
]

# n, s, o, d, m, bias: one of everything, ragged and whole panels of 48, several positions, empty factors, many outputs.
SHAPES = [
    (1, 1, 1, 1, 1, 0.0),
    (2, 1, 1, 3, 2, 1.0),
    (7, 1, 3, 5, 4, 1.0),
    (47, 1, 2, 16, 31, 0.0),
    (48, 1, 2, 33, 17, 0.0),
    (49, 1, 10, 64, 70, 1.0),
    (97, 1, 1, 515, 530, 0.0),
    (130, 2, 3, 20, 30, 1.0),
    (60, 3, 1, 40, 50, 0.0),
    (20, 12, 2, 9, 8, 1.0),
    (64, 1, 1, 0, 20, 1.0),
    (40, 1, 2, 20, 0, 0.0),
    (5, 1, 70, 6, 7, 0.0),
    (300, 1, 4, 7, 5, 1.0),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def most_bytes(job: Callable[[], object]) -> int:
    """Most memory that tensors made in a job held at once."""
    with torch.profiler.profile(profile_memory=True) as profiled:
        job()
    held = most = 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def tolerance(dtype: torch.dtype, numbers: int) -> float:
    """Relative to the norm of K: rounding of sums of this many products."""
    return 4e-15 if dtype == torch.float64 else 1.2e-7 * (4 + math.sqrt(numbers))


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tangent_gram(op, dtype, shape):
    *sizes, bias = shape
    forward, backward = factors(*sizes, dtype)
    expected = reference.kernel(forward, backward, bias)
    got = op.tangent_gram(one_layer(forward, backward, bias), "highest")
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(got, got.T)
    assert (got - expected).norm() <= tolerance(dtype, sizes[3] + sizes[4]) * expected.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (20, 6, 2, 9, 8, 1.0)], ids=str)
@pytest.mark.parametrize("by_jacobian", [False, True])
def test_tangent_gram_in_given_memory(dtype, shape, by_jacobian):
    """Which is written as a whole; in float64 with the rounding of float64 for factors of any type."""
    n, s, o, d, m, bias = shape
    forward, backward = factors(n, s, o, d, m, dtype)
    expected = reference.kernel(forward, backward, bias)
    batch = one_layer(forward, backward, bias, by_jacobian)
    alone = ops.tangent_gram(batch, "highest")
    memory = torch.full((3, n * o, n * o), math.nan, dtype=alone.dtype)
    assert ops.tangent_gram(batch, "highest", memory[1]).data_ptr() == memory[1].data_ptr()
    assert torch.equal(memory[1], alone) and memory[[0, 2]].isnan().all()
    exact = ops.tangent_gram(batch, "medium", torch.full(expected.shape, math.nan, dtype=torch.float64))
    assert torch.equal(exact, exact.T)
    assert (exact - expected).norm() <= 4e-15 * expected.norm()
    copied = torch.full_like(exact, math.nan)
    plain.tangent_gram_out(batch, "medium", copied)
    assert (copied - expected).norm() <= 4e-15 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tangent_gram_refuses_memory_that_does_not_fit(dtype):
    batch = one_layer(*factors(4, 1, 2, 3, 5, dtype), 0.0)
    for out in (torch.empty(8, 9, dtype=dtype), torch.empty(8, 16, dtype=dtype)[:, ::2], torch.empty(64, dtype=dtype)):
        with pytest.raises(RuntimeError, match=r"out: expected a contiguous tensor of shape \[n\*o, n\*o\] = \[8, 8\]"):
            ops.tangent_gram(batch, "highest", out)
    wrong = torch.float32 if dtype == torch.float64 else torch.bfloat16
    with pytest.raises(RuntimeError, match="out: expected float64 numbers, or float32 for factors below float64"):
        ops.tangent_gram(batch, "highest", torch.empty(8, 8, dtype=wrong))


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_thin_products_and_diagonal(op, dtype, shape):
    *sizes, bias = shape
    n, _, o = sizes[:3]
    forward, backward = factors(*sizes, dtype)
    expected = reference.kernel(forward, backward, bias)
    v = torch.randn(n, o, 3, dtype=torch.float64)
    got = op.tangent_product(one_layer(forward, backward, bias), v)
    bound = 1e-14 * expected.norm() * v.norm()
    assert (got.view(n * o, 3) - expected @ v.view(n * o, 3)).norm() <= bound
    forms = op.tangent_quadratic(one_layer(forward, backward, bias), v)
    assert (forms - (v.view(n * o, 3) * (expected @ v.view(n * o, 3))).sum(0)).norm() <= bound * v.norm()
    sums = op.tangent_row_sums(one_layer(forward, backward, bias)).flatten()
    exact = o == 1 or dtype == torch.float64
    rounding = 1e-14 if exact else tolerance(dtype, sizes[3] + sizes[4])
    assert (sums - expected.sum(1)).norm() <= rounding * expected.norm() * math.sqrt(n * o)
    diagonal = op.tangent_diagonal(one_layer(forward, backward, bias))
    assert diagonal.shape == (n, o)
    assert (diagonal.flatten() - expected.diagonal()).norm() <= 1e-14 * expected.norm()
    single = op.tangent_product(one_layer(forward, backward, bias), v, True)
    bound = tolerance(dtype, sizes[3] + sizes[4]) * expected.norm() * v.norm()
    assert (single.view(n * o, 3) - expected @ v.view(n * o, 3)).norm() <= bound


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("n", "o"), [(1, 2), (53, 1), (410, 3)], ids=str)
def test_cross_products(op, dtype, shape, n, o):
    """Between samples of different numbers, outputs and positions: a block of the kernel of all of them."""
    *sizes, bias = shape
    s, d, m = sizes[1], *sizes[3:]
    forward, backward = factors(*sizes, dtype)
    other_forward, other_backward = factors(n, s + 1, o, d, m, dtype, seed=1)
    a, b, g, h = (factor.double() for factor in (forward, other_forward, backward, other_backward))
    p = torch.einsum("xsd,ytd->xsyt", a, b) + bias
    expected = torch.einsum("xsyt,xsim,ytjm->xiyj", p, g, h).flatten(2).flatten(0, 1)
    v = torch.randn(n, o, 2, dtype=torch.float64)
    got = op.tangent_cross_product(
        one_layer(forward, backward, bias), one_layer(other_forward, other_backward, bias), v
    )
    assert got.shape == (sizes[0], sizes[2], 2)
    assert (got.flatten(0, 1) - expected @ v.flatten(0, 1)).norm() <= 1e-14 * expected.norm() * v.norm()


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_centered_inner_products_of_two_kernels(op, dtype, shape):
    *sizes, bias = shape
    n, _, o = sizes[:3]
    first = factors(*sizes, dtype)
    second = factors(n, 1, o, 6, 3, dtype, seed=1)
    dense = [reference.kernel(*first, bias), reference.kernel(*second, 0.0)]
    centered = torch.stack([reference.centered(k) for k in dense])
    expected = torch.einsum("aij,bij->ab", centered, centered)
    scale = torch.einsum("aij,bij->ab", *2 * [torch.stack([k.norm().view(1, 1) for k in dense])])
    batch = kernels([(*first, bias)], [(*second, 0.0)])
    got = op.centered_inner_products(batch, [row_means(k, o) for k in dense], "highest")
    assert torch.equal(got, got.T)
    assert (got - expected).abs().le(2 * tolerance(dtype, sizes[3] + sizes[4]) * scale).all()


def moments(k: Tensor, v: Tensor) -> Tensor:
    """Inner product with v, squared norm, trace and sum, [4]."""
    return torch.stack((v.flatten() @ k @ v.flatten(), reference.centered(k).square().sum(), k.trace(), k.sum()))


def centered_vector(n: int, o: int) -> Tensor:
    v = torch.randn(n, o, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return v - v.mean()


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[2] > 1], ids=str)
def test_moments_of_two_kernels(op, dtype, shape):
    *sizes, bias = shape
    n, _, o = sizes[:3]
    first, second = factors(*sizes, dtype), factors(n, 1, o, 6, 3, dtype, seed=1)
    v = centered_vector(n, o)
    (got,) = op.tangent_moments(kernels([(*first, bias)], [(*second, 0.0)]), v, "highest")
    for row, k in zip(got.stacked(), [reference.kernel(*first, bias), reference.kernel(*second, 0.0)], strict=True):
        size = torch.stack((v.square().sum() * k.norm(), k.norm() ** 2, k.trace(), n * o * k.norm()))
        assert (row - moments(k, v)).abs().le(2 * tolerance(dtype, sizes[3] + sizes[4]) * size).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(20, 1, 3, 0, 60_001), (70, 1, 2, 130_001, 40), (50, 1, 10, 30, 18_000)], ids=str)
def test_moments_of_few_rows_with_many_numbers(sizes, dtype):
    """Jacobians: more numbers for each pair of panels than the workspace takes."""
    forward, backward = factors(*sizes, dtype)
    v = centered_vector(sizes[0], sizes[2])
    k = reference.kernel(forward, backward, 1.0)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(ops.tangent_moments(one_layer(forward, backward, 1.0), v, "highest")[0].stacked()[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    n, o = sizes[0], sizes[2]
    size = torch.stack((v.square().sum() * k.norm(), k.norm() ** 2, k.trace(), n * o * k.norm()))
    assert (found[0] - moments(k, v)).abs().le(2 * tolerance(dtype, sizes[3] + sizes[4]) * size).all()


# n, o, d, m, bias, of more tiles than are kept: short panels, no inputs, more numbers along k than are taken at once.
PASSING = [(150, 15, 7, 40, 1.0), (1030, 2, 0, 70, 1.0), (209, 10, 300, 500, 0.0), (33, 70, 5, 1, 1.0)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", PASSING, ids=str)
def test_moments_of_tiles_that_are_not_kept(shape, dtype):
    n, o, d, m, bias = shape
    forward, backward = factors(n, 1, o, d, m, dtype)
    k, v = reference.kernel(forward, backward, bias), centered_vector(n, o)
    size = torch.stack((v.square().sum() * k.norm(), k.norm() ** 2, k.trace(), n * o * k.norm()))
    for precision, roundings in (("highest", 1), ("high", 2**8), ("medium", 2**15)):
        if dtype == torch.float64:
            roundings = 1
        got = ops.tangent_moments(one_layer(forward, backward, bias), v, precision)[0].stacked()[0]
        assert (got - moments(k, v)).abs().le(2 * roundings * tolerance(dtype, d + m) * size).all()


# s, d, m, bias, by Jacobian: the layers of a first, a second and a third kernel.
LAYERS = [
    [(1, 7, 5, 1.0, False)],
    [(4, 30, 50, 1.0, True), (3, 10, 9, 0.0, False), (34, 60, 100, 0.0, True)],
    [(1, 0, 30, 1.0, False), (2, 49, 97, 1.0, True)],
]


@functools.cache
def sums_of_layers(n: int, o: int, dtype: torch.dtype) -> tuple[list[list[tuple]], list[Tensor]]:
    """The layers of each kernel in LAYERS, some transposed and some much smaller than others, and the kernels."""
    batch, dense = [], []
    for layers in LAYERS:
        k, batch_layers = torch.zeros(n * o, n * o, dtype=torch.float64), []
        for s, d, m, bias, by_jacobian in layers:
            a, g = factors(n, s, o, d, m, dtype, seed=s)
            if s > 1:
                a, g = a.transpose(1, 2).contiguous().transpose(1, 2), g * 10.0 ** -(s % 3)
            k += reference.kernel(a, g, bias)
            batch_layers.append((a, g, bias, by_jacobian))
        batch.append(batch_layers)
        dense.append(k)
    return batch, dense


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "o"), [(1, 1), (5, 3), (49, 2), (100, 1), (130, 4)])
def test_sums_of_layers_and_jacobians(op, n, o, dtype):
    layers, dense = sums_of_layers(n, o, dtype)
    bound = tolerance(dtype, 7000)

    total = torch.stack(dense).sum(0)
    gram = op.tangent_gram(kernels([one for of_kernel in layers for one in of_kernel]), "highest")
    assert torch.equal(gram, gram.T)
    assert (gram - total).norm() <= bound * total.norm()

    centered = torch.stack([reference.centered(k) for k in dense])
    norms = torch.stack([k.norm() for k in dense])
    products = op.centered_inner_products(kernels(*layers), [row_means(k, o) for k in dense], "highest")
    error = products - torch.einsum("aij,bij->ab", centered, centered)
    assert error.abs().le(2 * bound * norms[:, None] * norms).all()

    if o > 1:
        v = centered_vector(n, o)
        for row, k in zip(op.tangent_moments(kernels(*layers), v, "highest")[0].stacked(), dense, strict=True):
            size = torch.stack((v.square().sum() * k.norm(), k.norm() ** 2, k.trace(), n * o * k.norm()))
            assert (row - moments(k, v)).abs().le(2 * bound * size).all()


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("n", "o"), [(5, 3), (100, 1)])
def test_thin_ops_sum_over_the_layers(op, n, o, dtype):
    v = torch.randn(n, o, 2, dtype=torch.float64)
    for layers, k in zip(*sums_of_layers(n, o, dtype), strict=True):
        batch, few = kernels(layers), kernels([(a[:2], g[:2], *rest) for a, g, *rest in layers])
        exact, product = 1e-13 * k.norm(), (k @ v.flatten(0, 1)).view_as(v)
        rounding = 1e-13 if dtype == torch.float64 or o == 1 else tolerance(dtype, 7000)
        assert (op.tangent_diagonal(batch).flatten() - k.diagonal()).norm() <= exact
        assert (op.tangent_product(batch, v) - product).norm() <= exact * v.norm()
        assert (op.tangent_cross_product(few, batch, v) - product[:2]).norm() <= exact * v.norm()
        assert (op.tangent_quadratic(batch, v) - (v * product).sum((0, 1))).norm() <= exact * v.norm() ** 2
        sums = op.tangent_row_sums(batch).flatten()
        assert (sums - k.sum(1)).norm() <= rounding * k.norm() * math.sqrt(n * o)


def assert_kernels(op, layers: list[tuple[Tensor, Tensor, float]], o: int) -> None:
    """Of some layers, as one kernel and as several, by all ops that go over tiles."""
    dense = [reference.kernel(*layer) for layer in layers]
    total, bound = torch.stack(dense).sum(0), 1e-5
    gram = op.tangent_gram(kernels(layers), "highest")
    assert (gram - total).norm() <= bound * total.norm()
    v = centered_vector(len(total) // o, o)
    for batch, ks in ((kernels(layers), [total]), (kernels(*([layer] for layer in layers)), dense)):
        centered = [[reference.centered(k, one, o) for k in ks] for one in ("global", "per_output")]
        expected = torch.stack([torch.stack([torch.stack([(k * c).sum() for c in of]) for k in of]) for of in centered])
        norms = torch.stack([k.norm() for k in ks])
        room = bound * norms[:, None] * norms
        found = op.centered_inner_products(batch, [row_means(k, o) for k in ks], "highest")
        assert (found - expected[0]).abs().le(room).all()
        assert (op.per_output_inner_products(batch, "highest") - expected).abs().le(room).all()
        both = op.tangent_moments(batch, v, "highest", True)
        for of, one in zip(centered, both, strict=True):
            forms = torch.stack([v.flatten() @ k @ v.flatten() for k in of])
            assert (one.inner_product - forms).abs().le(bound * norms * v.square().sum()).all()
            assert (one.squared_norm - torch.stack([k.square().sum() for k in of])).abs().le(bound * norms**2).all()


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("n", [30, 70])
def test_layers_that_share_memory_and_differ_in_strides(op, n):
    """The same numbers in memory, in another order or again and again: no layer takes the tiles of another."""
    o = 4
    a, g = factors(n, 1, o, 6, o)
    repeated = [g[:1].expand_as(g), g[:, :, :1].expand_as(g), g[..., :1].expand_as(g)]
    sliding = g.as_strided(g.shape, (1, 1, n, 1))
    assert_kernels(op, [(a, one, 1.0) for one in (g, g.transpose(2, 3), *repeated, sliding)], o)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("scales", [(1e-15, 1e15), (1e15, 1e-15), (1e-15, 1e15, 1.0), (0.0, 1e-15)], ids=str)
def test_sums_of_layers_of_very_different_scales(op, scales):
    """All are computed at the scale of the largest, whichever comes first."""
    n, o = 60, 3
    a, g = factors(n, 1, o, 6, 5)
    assert_kernels(op, [(a, scale * g, 1.0) for scale in scales], o)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("scales", [(1.0, 1e3), (1e6, 1.0, 1e-6)], ids=str)
def test_layers_that_share_a_factor_at_different_scales(op, scales):
    """At the scale of their kernel, the shared factor has another scale in each of them."""
    n, o = 60, 3
    a, g = factors(n, 1, o, 6, 5)
    layers = [(scale * a, g, 0.0) for scale in scales]
    assert_kernels(op, layers, o)
    # Beside the largest layer, the others show in a sum alone.
    rest = [(torch.zeros_like(a), g, 0.0), *layers[1:]]
    expected = torch.stack([reference.kernel(*layer) for layer in rest]).sum(0)
    assert (op.tangent_gram(kernels(rest), "highest") - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("zero", ["forward", "backward"])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e-15])
def test_zeros_beside_numbers_whose_squares_are_out_of_range(op, dtype, zero, size):
    """Their kernel is zero, and hides no other layer of a sum whatever the size of that."""
    n, o = 40, 2
    a, g = factors(n, 1, o, 6, 5, dtype)
    zeros = (a * (zero != "forward") * 1e25, g * (zero != "backward") * 1e25, 0.0)
    layers = [zeros, (a, size * g, 0.0)]
    assert_kernels(op, layers, o)
    k = reference.kernel(*layers[1])
    for order in (layers, layers[::-1]):
        assert (op.tangent_gram(kernels(order), "highest") - k).norm() <= 1e-5 * k.norm()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark of Linux")
def test_tiles_of_many_rows_are_not_kept():
    """K over 2,600 rows has 14 MiB of tiles, and each is used as soon as it is made."""
    batch, v = one_layer(*factors(1300, 1, 2, 3, 3, torch.float32), 1.0), centered_vector(1300, 2)
    ops.tangent_moments(batch, v, "highest")
    held = memory.reset_high_water_mark()
    ops.tangent_moments(batch, v, "highest")
    assert memory.high_water_mark() - held < 7 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark of Linux")
def test_tiles_in_memory_are_those_of_a_block():
    """K over 12,000 rows has 280 MiB of tiles, of which 128 MiB are kept at a time, beside 64 MiB of slices."""
    batch = one_layer(*factors(6000, 2, 2, 1, 1, torch.float32), 0.0, True)
    means = [torch.zeros(6000, 2, dtype=torch.float64)]
    held = memory.reset_high_water_mark()
    ops.centered_inner_products(batch, means, "highest")
    assert memory.high_water_mark() - held < 240 << 20


def test_a_jacobian_of_more_outputs_than_tiles_in_memory():
    """124 outputs have 135 MiB of tiles, of which 117 rows of tiles are in memory at a time."""
    a, g = factors(2, 1, 124, 0, 3, torch.float32)
    expected = reference.kernel(a, g, 1.0)
    found = ops.tangent_gram(one_layer(a, g, 1.0), "highest")
    assert (found - expected).norm() <= tolerance(torch.float32, 3) * expected.norm()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark of Linux")
def test_packed_panels_fit_a_workspace():
    """A panel of 48 rows with 60,000 numbers takes 11 MiB, and two of the seven panels are packed at a time."""
    a, g = torch.randn(300, 1, 1), torch.randn(1, 1, 2, 30_000).expand(300, 1, 2, 30_000)
    means = [torch.zeros(300, 2, dtype=torch.float64)]
    held = memory.reset_high_water_mark()
    ops.centered_inner_products(one_layer(a, g, 0.0), means, "highest")
    assert memory.high_water_mark() - held < 40 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark of Linux")
def test_products_with_few_vectors_take_slices():
    """16 weighted sums of gradients of all samples would take 98 MiB, and are 4 MiB at a time."""
    a, g = torch.randn(100, 1, 100), torch.randn(1, 1, 1, 8000).expand(100, 1, 1, 8000)
    v = torch.randn(100, 1, 16, dtype=torch.float64)
    held = memory.reset_high_water_mark()
    ops.tangent_product(one_layer(a, g, 0.0), v)
    assert memory.high_water_mark() - held < 40 << 20


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3])
def test_nearly_constant_jacobians(op, spread):
    """One output and K within `spread` of constant, as a sum with a layer that goes by its Jacobian."""
    generator = torch.Generator().manual_seed(0)

    def near(*shape: int) -> Tensor:
        constant = torch.randn(1, *shape[1:], generator=generator)
        return constant + spread * torch.randn(*shape, generator=generator)

    a, g, other = near(120, 6, 30), near(120, 6, 1, 50), near(120, 1, 1, 300)
    k = reference.kernel(a, g, 1.0) + reference.kernel(other[:, :, 0, :0], other, 1.0)
    expected = reference.centered(k).square().sum()
    batch = kernels([(a, g, 1.0, True), (other[:, :, 0, :0], other, 1.0)])
    got = op.centered_inner_products(batch, [row_means(k, 1)], "highest")
    assert float((got - expected).abs() / expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_nearly_constant_bias_in_several_slices(dtype):
    """The bias has more numbers than a slice of the Jacobian (48 x 48), and each of them a mean of its own."""
    n, s, m = 5, 2, 2400
    a, g = torch.ones(n, s, 1, dtype=dtype), torch.randn(1, s, 1, m) + 1e-2 * torch.randn(n, s, 1, m)
    a, g = a + 1e-2 * torch.randn(n, s, 1), g.to(dtype)
    k = reference.kernel(a, g, 1.0)
    expected = reference.centered(k).square().sum()
    got = ops.centered_inner_products(one_layer(a, g, 1.0, True), [row_means(k, 1)], "highest")
    assert float((got - expected).abs() / expected) < 1e-5


@pytest.mark.parametrize("m", [1, 3, 15, 16, 17, 31, 32, 47, 49])
def test_gram_by_jacobian_whatever_its_memory_held_before(m):
    n, s, o, d = 20, 5, 3, 27
    a, g = factors(n, s, o, d, m, torch.float32)
    expected = reference.kernel(a, g, 1.0)
    for _ in range(3):  # buffers are made of memory that was freed with nan in it
        [torch.full((size,), math.nan) for size in (500, 1_000, 5_000, 20_000, 100_000)].clear()
        found = ops.tangent_gram(one_layer(a, g, 1.0, True), "highest")
        assert (found - expected).norm() <= tolerance(torch.float32, s * m * d) * expected.norm()


@pytest.mark.parametrize("shape", [(1, 49, 2), (3, 100, 2), (7, 70, 3), (50, 12, 2), (97, 17, 2), (30, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pairs_of_many_positions_or_few_samples(shape, dtype):
    """Positions in the rows of tiles: several panels for a sample, or several samples in one, alone and shared."""
    n, s, o = shape
    a, g = factors(n, s, o, 5, 6, dtype)
    g = g.transpose(1, 3).contiguous().transpose(1, 3)
    dense = [reference.kernel(a, g, 1.0), reference.kernel(a[..., :0], g, 1.0)]
    bound = math.sqrt(s) * tolerance(dtype, 11)  # s^2 products that cancel down to the size of s
    gram = ops.tangent_gram(one_layer(a, g, 1.0), "highest")
    assert torch.equal(gram, gram.T)
    assert (gram - dense[0]).norm() <= bound * dense[0].norm()
    centered = torch.stack([reference.centered(k) for k in dense])
    norms = torch.stack([k.norm() for k in dense])
    means = [row_means(k, o) for k in dense]
    products = ops.centered_inner_products(kernels([(a, g, 1.0)], [(a[..., :0], g, 1.0)]), means, "highest")
    error = products - torch.einsum("aij,bij->ab", centered, centered)
    assert error.abs().le(2 * bound * norms[:, None] * norms).all()


def test_single_output_with_many_numbers_in_blocks():
    """Rows beyond the workspace that have to be centered before they are multiplied."""
    forward, backward = factors(100, 1, 1, 3, 100_000)
    backward = backward + 3
    k = reference.kernel(forward, backward, 1.0)
    got = ops.centered_inner_products(one_layer(forward, backward, 1.0), [row_means(k, 1)], "highest")
    assert float(got) == pytest.approx(float(reference.centered(k).square().sum()), rel=1e-6)


@pytest.mark.parametrize("o", [10, 130])
def test_tiles_in_memory_in_several_blocks(o):
    """More tiles than are kept at a time: squares of panels, or part of the outputs of one pair of panels."""
    n = 800 if o == 10 else 49
    forward, backward = factors(n, 2, o, 3, 4)
    k = reference.kernel(forward, backward, 1.0)
    means = [row_means(k, o)]
    got = ops.centered_inner_products(one_layer(forward, backward, 1.0, True), means, "highest")
    assert float(got) == pytest.approx(float(reference.centered(k).square().sum()), rel=1e-6)
    gram = ops.tangent_gram(one_layer(forward, backward, 1.0, True), "highest")
    assert (gram - k).norm() <= 1e-6 * k.norm()


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
@pytest.mark.parametrize("n", [60, 300], ids=["tiles in memory", "passing tiles"])
def test_moments_at_extreme_scales(n, scale):
    forward, backward = factors(n, 1, 3, 20, 30, torch.float32)
    backward *= scale
    v = centered_vector(n, 3) / scale
    k = reference.kernel(forward, backward, 0.0)
    got = ops.tangent_moments(one_layer(forward, backward, 0.0), v, "highest")[0].stacked()[0]
    torch.testing.assert_close(got, moments(k, v), rtol=1e-5, atol=0)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_zero_means_leave_the_kernel_uncentered(op):
    forward, backward = factors(33, 1, 2, 8, 9, torch.float64)
    k = reference.kernel(forward, backward, 1.0)
    got = op.centered_inner_products(
        one_layer(forward, backward, 1.0), [torch.zeros(33, 2, dtype=torch.float64)], "highest"
    )
    assert float(got) == pytest.approx(float((k * k).sum()), rel=1e-13)


def relative_error(op, forward: Tensor, backward: Tensor, bias: float, precision: str = "highest") -> float:
    """Of ||C K C||^2, against fp64 at the same factors."""
    k = reference.kernel(forward, backward, bias)
    got = op.centered_inner_products(one_layer(forward, backward, bias), [row_means(k, backward.shape[2])], precision)
    expected = reference.centered(k).square().sum()
    return float((got - expected).abs() / expected)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3])
def test_nearly_constant_kernels(op, spread):
    """One output, K within `spread` of constant: squaring before centering would leave no digit."""
    n, d, m = 300, 200, 210
    generator = torch.Generator().manual_seed(0)
    constant_a, constant_g = torch.randn(d, generator=generator), torch.randn(m, generator=generator)
    forward = (constant_a + spread * torch.randn(n, d, generator=generator)).view(n, 1, d)
    backward = (constant_g + spread * torch.randn(n, m, generator=generator)).view(n, 1, 1, m)
    assert relative_error(op, forward, backward, 0.0) < 1e-5


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("forward_scale", [1e-18, 1.0, 1e18])
@pytest.mark.parametrize("backward_scale", [1e-18, 1.0, 1e18])
def test_extreme_scales(op, forward_scale, backward_scale):
    forward, backward = factors(60, 1, 3, 50, 40, torch.float32)
    forward, backward = forward * forward_scale, backward * backward_scale
    assert relative_error(op, forward, backward, 0.0) < 1e-5
    assert relative_error(op, forward, backward, 1.0) < 1e-5


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("dtype", "forward_scale", "backward_scale"),
    [
        (torch.bfloat16, 1e-18, 1e-18),
        (torch.bfloat16, 1e18, 1e18),
        (torch.bfloat16, 1e-25, 1e25),
        (torch.float16, 1e-6, 1e-6),
    ],
)
def test_extreme_scales_of_16_bit_factors(op, dtype, forward_scale, backward_scale):
    """The kernel, its squares or one of its two Grams are out of the range of fp32."""
    forward, backward = factors(60, 1, 3, 50, 40, torch.float32)
    assert relative_error(op, (forward * forward_scale).to(dtype), (backward * backward_scale).to(dtype), 0.0) < 1e-5


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_numbers_below_the_normal_ones_of_fp32(op):
    forward, backward = factors(60, 1, 3, 50, 40, torch.float32)
    forward = torch.randint(1, 8, forward.shape) * 2.0**-140  # exactly
    assert relative_error(op, forward, backward, 0.0) < 1e-5


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_the_largest_numbers_of_fp32_where_those_below_the_normal_ones_are_zero(op):
    forward, backward = factors(60, 1, 3, 50, 40, torch.float32)
    forward *= 3e38 / forward.abs().max()
    flushed = torch.set_flush_denormal(True)
    try:
        error = relative_error(op, forward, backward, 0.0)
    finally:
        torch.set_flush_denormal(False)
    assert flushed and error < 1e-5


@pytest.mark.parametrize("size", [1e-5, 2e-7, 1e-9])
def test_inputs_that_are_tiny_beside_a_bias(size):
    """What centering per output leaves is below what squares in fp32 hold; where it comes close, float64 takes over."""
    n, o, s, d = 100, 2, 1, 2
    a = size * torch.randn(n, s, d)
    g = torch.eye(o).expand(n, s, o, o)
    batch, v = one_layer(a, g, 1.0), centered_vector(n, o)
    deviation = a[:, 0].double() - a[:, 0].double().mean(0)
    k, labels = deviation @ deviation.T, (v - v.mean(0))[..., 0]
    square, form = float(2 * k.square().sum()), float((labels * (k @ labels)).sum())
    exact = 1e-5 if size > 1e-6 else 1e-10
    assert float(ops.per_output_inner_products(batch, "highest")[1]) == pytest.approx(square, rel=exact)
    moments = ops.tangent_moments(batch, v, "highest", True)[1]
    assert float(moments.squared_norm) == pytest.approx(square, rel=exact)
    assert float(moments.inner_product) == pytest.approx(form, rel=exact)

    a0 = a.mean(0).double()
    rest = a[:, 0].double() - a0[0]
    pairs = rest @ rest.T
    means = (pairs.sum(1) / n)[:, None, None] * torch.eye(o).double()
    expected = 2 * (pairs - pairs.mean(1) - pairs.mean(1)[:, None]).square().sum()
    got = ops.pair_inner_products(batch, [means], "highest", n, 0, [a0], [g[0].double()])
    assert float(got) == pytest.approx(float(expected), rel=exact)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_samples_of_very_different_scales(op, dtype):
    forward, backward = factors(60, 1, 2, 30, 20, dtype)
    forward = forward * torch.logspace(-10, 10, 60, dtype=dtype).view(60, 1, 1)
    assert relative_error(op, forward, backward, 1.0) < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_medium_precision_is_that_of_bf16_factors(op):
    """With bf16 products where there are such instructions; elsewhere with more precision, never less."""
    forward, backward = factors(100, 1, 3, 65, 77, torch.float32)
    k = reference.kernel(forward, backward, 0.0)
    rounded = reference.kernel(forward.bfloat16(), backward.bfloat16(), 0.0)
    got = op.tangent_gram(one_layer(forward, backward, 0.0), "medium")
    assert (got - k).norm() <= 1.05 * (rounded - k).norm()
    assert relative_error(op, forward, backward, 0.0, "medium") < 1e-2


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_high_precision_is_better_than_that_of_tf32(op):
    forward, backward = factors(100, 1, 3, 65, 77, torch.float32)
    k = reference.kernel(forward, backward, 0.0)
    rounded = reference.kernel(to_tf32(forward), to_tf32(backward), 0.0)
    got = op.tangent_gram(one_layer(forward, backward, 0.0), "high")
    assert (got - k).norm() <= 0.7 * (rounded - k).norm()


def to_tf32(x: Tensor) -> Tensor:
    """With 10 bits after the first, rounded."""
    return (x.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("large", [1e2, 1e4, 1e6])
@pytest.mark.parametrize(("d", "m"), [(20, 40), (300, 700)])
def test_rows_of_a_few_large_numbers(op, large, d, m):
    """Errors stay small beside the rows' norms where single numbers exceed all others in their row."""
    forward, backward = factors(60, 1, 2, d, m, torch.float32)
    forward[torch.arange(60), 0, torch.arange(60) % 7] *= large
    backward[:, 0, 1, 5] *= large
    k = reference.kernel(forward, backward, 0.0)
    scale = k.diagonal().sqrt()
    got = op.tangent_gram(one_layer(forward, backward, 0.0), "highest")
    assert ((got - k).abs() / (scale[:, None] * scale)).max() <= 2**-21 * math.sqrt(max(d, m))
    assert relative_error(op, forward, backward, 0.0) <= 1e-5


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_with_nan_or_inf_stay_not_finite(precision, bad):
    forward, backward = factors(60, 1, 2, 70, 40, torch.float32)
    expected = torch.zeros(120, dtype=torch.bool)
    expected[2 * 50 + 1] = True
    backward[50, 0, 1, 39] = bad
    k = ops.tangent_gram(one_layer(forward, backward, 0.0), precision)
    assert not k[expected].isfinite().any()
    assert k[~expected][:, ~expected].isfinite().all()


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_a_backward_factor_at_two_scales(op):
    """The scale of a sum of layers is that of the larger one, beside which the factor has a scale of its own."""
    (a, g), (other, large), (last, _) = (factors(40, 1, 3, 20, 30, torch.float32, seed=i) for i in range(3))
    layers = [[(a, g, 0.0)], [(last, g, 0.0), (3 * other, 2e4 * large, 0.0)]]
    dense = [sum(reference.kernel(*one) for one in of_kernel) for of_kernel in layers]
    means = [reference.row_means(k, 3) for k in dense]
    centered = [reference.centered(k, "global", 3) for k in dense]
    got = op.centered_inner_products(kernels(*layers), means, "highest")
    for i, j in itertools.product(range(2), repeat=2):
        norms = float(centered[i].norm() * centered[j].norm())
        assert float(got[i, j]) == pytest.approx(float((centered[i] * centered[j]).sum()), abs=1e-6 * norms)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("n", [40, 300])
def test_moments_of_several_kernels_are_those_of_each(op, n):
    """Also bit for bit, however many threads take them side by side; the second and the fourth share a factor."""
    layers = [factors(n, 1, 3, 20 + i, 30, torch.float32, seed=i) for i in range(5)]
    layers[3] = layers[3][0], layers[1][1]
    v = torch.randn(n, 3, 1, dtype=torch.float64)
    v -= v.mean()
    biased = [[(*pair, float(i % 2))] for i, pair in enumerate(layers)]
    alone = torch.cat([op.tangent_moments(kernels(one), v, "highest")[0].stacked() for one in biased])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            got = op.tangent_moments(kernels(*biased), v, "highest")[0].stacked()
            assert torch.allclose(got, alone, rtol=1e-6 if op is ops else 1e-10)
            if op is ops:
                assert torch.equal(got, ops.tangent_moments(kernels(*biased), v, "highest")[0].stacked())
                independent = [0, 2, 4]
                assert torch.equal(got[independent], alone[independent])
    finally:
        torch.set_num_threads(before)


def test_strided_and_expanded_factors():
    forward, backward = factors(50, 2, 3, 40, 36, torch.float32)
    k = ops.tangent_gram(one_layer(forward, backward, 1.0), "highest")
    v = torch.randn(50, 3, 1, dtype=torch.float64)
    layouts = [
        (forward.permute(2, 0, 1).contiguous().permute(1, 2, 0), backward.permute(3, 2, 0, 1).contiguous()),
        (forward.transpose(0, 1).contiguous().transpose(0, 1), backward.transpose(0, 2).contiguous()),
        (torch.stack([forward, forward], 3)[..., 1], torch.stack([backward, backward], 0)[1]),
    ]
    layouts[0] = (layouts[0][0], layouts[0][1].permute(2, 3, 1, 0))
    layouts[1] = (layouts[1][0], layouts[1][1].transpose(0, 2))
    means = [row_means(k.double(), 3)]
    products = ops.centered_inner_products(one_layer(forward, backward, 1.0), means, "highest")
    for a, g in layouts:
        assert torch.equal(a, forward) and torch.equal(g, backward)
        assert not a.is_contiguous() or not g.is_contiguous()
        assert torch.equal(ops.tangent_gram(one_layer(a, g, 1.0), "highest"), k)
        assert torch.equal(ops.centered_inner_products(one_layer(a, g, 1.0), means, "highest"), products)
        torch.testing.assert_close(
            ops.tangent_product(one_layer(a, g, 1.0), v),
            ops.tangent_product(one_layer(forward, backward, 1.0), v),
            rtol=1e-13,
            atol=1e-11,
        )
        torch.testing.assert_close(
            ops.tangent_diagonal(one_layer(a, g, 1.0)),
            ops.tangent_diagonal(one_layer(forward, backward, 1.0)),
            rtol=1e-13,
            atol=1e-11,
        )
    ones = torch.ones(1).expand(50, 2, 1, 1)
    assert torch.equal(
        ops.tangent_gram(one_layer(forward, ones, 0.0), "highest"),
        ops.tangent_gram(one_layer(forward, ones.clone(), 0.0), "highest"),
    )


def test_factors_spread_over_more_than_2_31_elements():
    """Offsets beyond 32 bits: few rows, far apart in memory that is otherwise never touched."""
    n, d, m = 50, 6, 5
    stride = 2**31 // (n - 2)
    memory = torch.empty(stride * (n - 1) + m + d, dtype=torch.float32)
    assert stride * (n - 1) > 2**31
    forward = memory.as_strided((n, 1, d), (stride, 1, 1))
    backward = memory.as_strided((n, 1, 1, m), (stride, 1, 1, 1), d)
    a, g = factors(n, 1, 1, d, m, torch.float32)
    forward.copy_(a)
    backward.copy_(g)
    assert torch.equal(
        ops.tangent_gram(one_layer(forward, backward, 0.0), "highest"),
        ops.tangent_gram(one_layer(a, g, 0.0), "highest"),
    )
    v = torch.randn(n, 1, 2, dtype=torch.float64)
    assert torch.equal(
        ops.tangent_product(one_layer(forward, backward, 0.0), v), ops.tangent_product(one_layer(a, g, 0.0), v)
    )


def test_factors_larger_than_the_workspace():
    """Several groups of panels: n*(d + o*m) numbers beyond 32 MiB."""
    forward, backward = factors(400, 1, 3, 5000, 8000, torch.float32)
    k = ops.tangent_gram(one_layer(forward, backward, 0.0), "highest")
    p = forward[:, 0].double() @ forward[:, 0].double().T
    for x, y in [(0, 0), (3, 399), (250, 149), (399, 399)]:
        q = backward[x, 0].double() @ backward[y, 0].double().T
        block = k[3 * x : 3 * x + 3, 3 * y : 3 * y + 3]
        assert (block - p[x, y] * q).norm() <= 1e-5 * (p[x, x] * p[y, y]).sqrt() * 8000
    centered = reference.centered(k.double())
    got = ops.centered_inner_products(one_layer(forward, backward, 0.0), [row_means(k.double(), 3)], "highest")
    assert float(got) == pytest.approx(float(centered.square().sum()), rel=1e-6)
    v = torch.randn(400, 3, 1, dtype=torch.float64)
    product = ops.tangent_product(one_layer(forward, backward, 0.0), v).flatten()
    assert (product - k.double() @ v.flatten()).norm() <= 1e-6 * k.norm() * v.norm()


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("through", ["samples", "parameters"])
def test_both_routes_of_thin_products(op, through):
    n, d, m = (20, 200, 300) if through == "samples" else (500, 20, 30)
    forward, backward = factors(n, 2, 2, d, m, torch.float32)
    v = torch.randn(n, 2, 2, dtype=torch.float64)
    expected = reference.kernel(forward, backward, 1.0) @ v.view(2 * n, 2)
    got = op.tangent_product(one_layer(forward, backward, 1.0), v).view(2 * n, 2)
    assert (got - expected).norm() <= 1e-14 * math.sqrt(n) * expected.norm()
    forms = op.tangent_quadratic(one_layer(forward, backward, 1.0), v)
    torch.testing.assert_close(forms, (v.view(2 * n, 2) * expected).sum(0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("through", ["samples", "parameters"])
@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (1e30, 1e25, 1e180), (1e-30, 1e-30, 1e-180), (1e30, 1e-30, 1.0)])
def test_products_in_float32_at_any_scale(scales, through):
    """In plain torch; columns of other sizes keep their digits, and those of zeros are zero."""
    n, d, m = (20, 200, 300) if through == "samples" else (500, 20, 30)
    forward, backward = factors(n, 2, 2, d, m, torch.float32)
    forward, backward = forward * scales[0], backward * scales[1]
    v = torch.randn(n, 2, 3, dtype=torch.float64)
    v[..., 2] = 0
    sizes = torch.tensor([scales[2], 1.0, 1.0], dtype=torch.float64)
    k = reference.kernel(forward, backward, 1.0)
    got = plain.tangent_product(one_layer(forward, backward, 1.0), v * sizes, True)
    errors = (got / sizes).flatten(0, 1) - k @ v.flatten(0, 1)
    assert (errors.norm(dim=0) <= 1e-6 * k.norm() * v.flatten(0, 1).norm(dim=0)).all()
    assert errors.any()  # it is not float64


def test_products_in_float32_of_zeros():
    forward, backward = factors(4, 1, 2, 3, 5)
    for a, g in ((forward, torch.zeros_like(backward)), (torch.zeros_like(forward), backward)):
        assert plain.tangent_product(one_layer(a, g, 0.0), torch.ones(4, 2, 1, dtype=torch.float64), True).eq(0).all()


def test_products_in_float32_whatever_the_user_has_set(monkeypatch):
    """Also while several threads need it; then the setting is the user's again."""
    batch, v = one_layer(*factors(40, 1, 2, 9, 8), 1.0), torch.randn(40, 2, 1, dtype=torch.float64)
    expected = plain.tangent_product(batch, v, True)
    seen, together, einsum, matmul = [], threading.Barrier(2), torch.einsum, torch.backends.mkldnn.matmul

    def watched(*args):
        together.wait(60)
        seen.append(matmul.fp32_precision)
        return einsum(*args)

    monkeypatch.setattr(torch, "einsum", watched)
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16"
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda _: plain.tangent_product(batch, v, True), range(2)))
        assert set(seen) == {"ieee"} and matmul.fp32_precision == "bf16"
        with products_in_float32(torch.device("cpu")):
            assert resolve_precision(None) == "medium"  # what the user has set, all the same
    finally:
        matmul.fp32_precision = before
    assert all(torch.equal(one, expected) for one in found)


@pytest.mark.parametrize("numbers", [1, 50, 700])
@pytest.mark.parametrize("sizes", [(20, 2, 3, 30, 40), (90, 1, 2, 8, 9), (7, 3, 1, 0, 5), (6, 1, 2, 9, 0)], ids=str)
def test_thin_products_of_plain_torch_in_chunks(monkeypatch, sizes, numbers):
    """Samples, other samples and pre-activations are cut at any place."""
    monkeypatch.setattr(plain, "chunk_elements", lambda factor: numbers)
    forward, backward = factors(*sizes, torch.float32)
    n, o = sizes[0], sizes[2]
    k = reference.kernel(forward, backward, 1.0)
    v = torch.randn(n, o, 2, dtype=torch.float64)
    expected = (k @ v.flatten(0, 1)).view_as(v)
    bound = 1e-13 * k.norm()
    assert (plain.tangent_product(one_layer(forward, backward, 1.0), v) - expected).norm() <= bound * v.norm()
    few = plain.tangent_cross_product(one_layer(forward[1:4], backward[1:4], 1.0), one_layer(forward, backward, 1.0), v)
    assert (few - expected[1:4]).norm() <= bound * v.norm()
    assert (
        plain.tangent_quadratic(one_layer(forward, backward, 1.0), v) - (v * expected).sum((0, 1))
    ).norm() <= bound * 1e2
    assert (plain.tangent_diagonal(one_layer(forward, backward, 1.0)).flatten() - k.diagonal()).norm() <= bound


@pytest.mark.parametrize("shape", [(10, 500, 700), (300, 500, 700), (1000, 500, 700)], ids=str)
def test_products_of_plain_torch_hold_a_few_chunks(monkeypatch, shape):
    """Of wide layers and few samples, and of many samples: [columns, m, d] would be 2.8 MB."""
    n, d, m = shape
    numbers = 20_000
    monkeypatch.setattr(plain, "chunk_elements", lambda factor: numbers)
    forward, backward = factors(n, 1, 2, d, m, torch.float32)
    v = torch.randn(n, 2, 1, dtype=torch.float64)
    for job in (
        lambda: plain.tangent_product(one_layer(forward, backward, 1.0), v),
        lambda: plain.tangent_quadratic(one_layer(forward, backward, 1.0), v),
        lambda: plain.tangent_diagonal(one_layer(forward, backward, 1.0)),
    ):
        assert 0 < most_bytes(job) <= 8 * (8 * numbers + 4 * n)


@pytest.mark.parametrize("by_jacobian", [False, True])
def test_panels_of_plain_torch_hold_a_few_chunks(monkeypatch, by_jacobian):
    """The kernel itself would be 2.6 MB."""
    n, s, o, numbers = 200, 2, 4, 10_000
    monkeypatch.setattr(plain, "chunk_elements", lambda factor: numbers)
    forward, backward = factors(n, s, o, 5, 6, torch.float32)
    two = kernels(*2 * [[(forward, backward, 1.0, by_jacobian)]])
    means, v = torch.zeros(n, o, dtype=torch.float64), centered_vector(n, o)
    for job in (
        lambda: plain.centered_inner_products(two, [means] * 2, "highest"),
        lambda: plain.per_output_inner_products(two, "medium"),
        lambda: plain.pair_inner_products(two, [means.unsqueeze(2)] * 2, "highest", n, 0),
        lambda: plain.tangent_moments(two, v, "highest"),
        lambda: plain.tangent_moments(two, v, "highest", True),
    ):
        assert 0 < most_bytes(job) <= 8 * 12 * numbers + 8 * (8 * n * o * o + 4 * two.forward[0].numel())


def test_chunks_of_plain_torch():
    """Bytes of float64 numbers."""
    assert 8 * plain.chunk_elements(torch.empty(0)) <= 64 << 20
    assert 8 * plain.chunk_elements(torch.empty(0, device="meta")) <= 512 << 20
    for numbers in (1, 1000, 10**6):
        for count, of_one in ((1, 1), (7, 300), (1000, 1), (50, 10**7), (3, 0)):
            chunks = plain.steps(count, numbers, of_one)
            assert [x for chunk in chunks for x in range(count)[chunk]] == list(range(count))
            assert all((chunk.stop - chunk.start) * of_one <= max(numbers, of_one) for chunk in chunks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "shape", [(200, 1, 10, 50, 60, 1.0), (130, 2, 3, 20, 30, 1.0), (900, 1, 1, 40, 30, 0.0)], ids=str
)
def test_same_bits_for_any_number_of_threads_and_any_run(dtype, shape):
    *sizes, bias = shape
    forward, backward = factors(*sizes, dtype)
    n, _, o = sizes[:3]
    v = torch.randn(n, o, 2, dtype=torch.float64)
    means = [row_means(reference.kernel(forward, backward, bias), o)]
    centered = centered_vector(n, o)

    one, several = one_layer(forward, backward, bias), [(forward, backward, bias, True), (forward, backward, bias)]

    def results() -> list[Tensor]:
        found = [
            ops.centered_inner_products(one, means, "highest"),
            ops.centered_inner_products(one, means, "medium"),
            ops.tangent_gram(one, "highest"),
            ops.tangent_product(one, v),
            ops.tangent_product(one, v, True),
            ops.tangent_cross_product(one_layer(forward[:7], backward[:7], bias), one, v),
            ops.tangent_quadratic(one, v),
            ops.tangent_row_sums(one),
            ops.tangent_diagonal(one),
            ops.centered_inner_products(kernels(several), means, "highest"),
        ]
        if o > 1:
            for batch, labels in (
                (one, centered),
                (one_layer(forward[:40], backward[:40], bias), centered[:40]),
                (kernels([several[0]], [(forward, backward, 1.0, True)]), centered),
            ):
                found += ops.tangent_moments(batch, labels, "highest")[0]
        return found

    before = torch.get_num_threads()
    first = results()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for _ in range(10 if threads <= 2 else 2):
                assert all(torch.equal(a, b) for a, b in zip(first, results(), strict=True))
    finally:
        torch.set_num_threads(before)


def test_opcheck():
    """Schemas, fake implementations and dispatch, also as torch.compile sees them."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        forward, backward = factors(5, 2, 3, 4, 6, dtype)
        means = torch.zeros(5, 3, dtype=torch.float64)
        library, v = torch.ops.ahkernels, means.unsqueeze(2)
        one, few = one_layer(forward, backward, 1.0), one_layer(forward[:2], backward[:2, :, :1], 1.0)
        for op, arguments in [
            (library.centered_inner_products, (*one, [means], "highest")),
            (library.tangent_gram, (*one_layer(forward, backward, 1.0, True), "highest")),
            (library.tangent_gram_out, (*one, "highest", torch.zeros(15, 15, dtype=torch.float64))),
            (library.tangent_product, (*one, v)),
            (library.tangent_product, (*one, v, True)),
            (library.tangent_cross_product, (*few, *one, v)),
            (library.tangent_quadratic, (*one, v)),
            (library.tangent_row_sums, (*one,)),
            (library.tangent_diagonal, (*one,)),
            (library.tangent_moments, (*one, v, "highest")),
        ]:
            torch.library.opcheck(op.default, arguments)


def test_batches_of_layer_factors():
    layers = [LayerFactors(*factors(4, s, 2, 3, 5, seed=s), bias=s == 1, by_jacobian=s > 1) for s in (1, 2, 3)]
    layers[0].backward.requires_grad_()
    batch = ops.KernelBatch.of([layers[:1], layers[1:]])
    assert batch.bias == [1.0, 0.0, 0.0] and batch.by_jacobian == [False, True, True] and batch.layers == [1, 2]
    assert not batch.backward[0].requires_grad
    assert (batch.n, batch.o, batch.dtype, batch.kernel_count) == (4, 2, torch.float32, 2)
    assert [len(kernel) for kernel in batch.kernels()] == [1, 2]
    assert batch.kernels()[1][1].forward is batch.forward[2]
    assert [part.layers for part in batch.split()] == [[1], [2]]
    assert batch.split()[1].backward == batch.backward[1:]
    assert batch.near_constant("per_output") and not batch.near_constant("global")
    assert batch.double().dtype == torch.float64
