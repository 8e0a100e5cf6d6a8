"""The CUDA kernels against the fp64 reference on a host: their source as it is, on an emulator of instructions."""

from __future__ import annotations

import ctypes

import pytest
import reference
import torch
from batches import kernels, one_layer
from emulated import SCHEDULES
from reference import factors, row_means

from ahkernels.ops import cuda, plain
from ahkernels.ops.cuda import panels, tiles

# n, s, o, d, m, bias: one tile and several, ragged and whole, k beyond the stages of the rings, as many samples in a
# tile as shared memory has room for (10 outputs in three parts, else 5), several positions.
SHAPES = [
    (1, 1, 2, 3, 5, 1.0),
    (64, 1, 2, 10, 64, 0.0),
    (30, 1, 10, 7, 70, 1.0),
    (40, 1, 7, 20, 450, 0.0),
    (3, 1, 100, 5, 130, 1.0),
    (110, 1, 5, 3, 8, 1.0),
    (20, 2, 9, 4, 30, 1.0),
    (7, 2, 17, 4, 200, 1.0),
    (70, 3, 2, 6, 0, 0.0),
]
BOUNDS = {"highest": 1e-6, "high": 3e-5, "medium": 1e-2}  # relative to the norm of K


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gram_and_inner_products(device, shape, precision):
    *sizes, bias = shape
    forward, backward = factors(*sizes)
    k = reference.kernel(forward, backward, bias)
    got = cuda.tangent_gram(one_layer(forward, backward, bias), precision)
    assert torch.equal(got, got.T)
    assert (got - k).norm() <= BOUNDS[precision] * k.norm()
    means = row_means(k, sizes[2])
    products = cuda.centered_inner_products(one_layer(forward, backward, bias), [means], precision)
    assert (products - reference.centered(k).square().sum()).abs() <= BOUNDS[precision] * k.norm() ** 2


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_three_kernels_in_panels(device, precision, monkeypatch):
    monkeypatch.setattr(panels, "PANEL_BYTES", 1)  # a panel of 128 samples at a time
    n, o = 140, 2
    layers = [
        (*factors(n, 1, o, 5, 20), 1.0),
        (*factors(n, 2, o, 3, 9, seed=1), 0.0),
        (*factors(n, 1, o, 2, 3, seed=2), 0.0),
    ]
    dense = [reference.kernel(*one) for one in layers]
    batch = kernels(*([one] for one in layers))
    got = cuda.centered_inner_products(batch, [row_means(k, o) for k in dense], precision)
    assert torch.equal(got, got.T)
    assert_inner_products(got, dense, BOUNDS[precision])


def assert_inner_products(got, dense, bound):
    centered = torch.stack([reference.centered(k) for k in dense])
    norms = torch.stack([k.norm() for k in dense])
    error = (got - torch.einsum("aij,bij->ab", centered, centered)).abs()
    assert error.le(bound * norms[:, None] * norms[None]).all()


# What a pass over the tiles can take, beside all of the layers.
LIMITS = {"one pass": {}, "Jacobians in slices": {"JACOBIAN_BYTES": 0}, "a layer at a time": {"MOST_LAYERS": 1}}


@pytest.mark.parametrize(
    ("precision", "limit"),
    [("high", "one pass"), *(("medium", limit) for limit in LIMITS)],
)
def test_sums_of_layers_and_jacobians(device, precision, limit, monkeypatch):
    monkeypatch.setattr(panels, "PANEL_BYTES", 1)
    monkeypatch.setattr(plain, "chunk_elements", lambda _: 5000)  # the Jacobian in two slices, and that of the bias
    for name, value in LIMITS[limit].items():
        monkeypatch.setattr(panels, name, value)
    n, o = 135, 2
    layers = [
        (*factors(n, 1, o, 5, 70), 1.0, False),
        (*(0.1 * factor for factor in factors(n, 4, o, 3, 9, seed=1)), 1.0, True),
        (*factors(n, 2, o, 3, 9, seed=2), 0.0, False),
    ]
    dense = [reference.kernel(*one[:3]) for one in layers]
    gram = cuda.tangent_gram(kernels(layers), precision)
    assert torch.equal(gram, gram.T)
    assert (gram - sum(dense)).norm() <= BOUNDS[precision] * sum(dense).norm()
    sums = [dense[0] + dense[1], dense[2]]
    means = [row_means(k, o) for k in sums]
    got = cuda.centered_inner_products(kernels(layers[:2], layers[2:]), means, precision)
    assert_inner_products(got, sums, BOUNDS[precision])


@pytest.mark.parametrize(
    ("limit", "passes"),
    [
        ({}, ["pack_slices", "pack_slices", "tangent_tiles", "tangent_tiles"]),
        (
            {"JACOBIAN_BYTES": 0},
            ["pack_parts", *2 * ["tangent_tiles", "pack_parts", "tangent_tiles"]],
        ),
    ],
    ids=["one pass", "Jacobians in slices"],
)
def test_what_a_sum_of_layers_takes(device, limit, passes, monkeypatch):
    """Every factor is packed once and a panel is one pass, unless the Jacobian is too large to be held."""
    called = []
    for name in ("pack_parts", "pack_slices", "tangent_tiles"):
        function = getattr(tiles, name)
        monkeypatch.setattr(
            tiles, name, lambda *args, name=name, function=function: called.append(name) or function(*args)
        )
    for name, value in {"PANEL_BYTES": 1, **limit}.items():
        monkeypatch.setattr(panels, name, value)
    n, o = 135, 2  # two panels
    layers = [(*factors(n, 1, o, 5, 20), 1.0, False), (*factors(n, 4, o, 3, 9, seed=1), 0.0, True)]
    k = sum(reference.kernel(*one[:3]) for one in layers)
    cuda.centered_inner_products(kernels(layers), [row_means(k, o)], "medium")
    assert called == passes


def test_layers_far_apart_in_scale(device):
    """The largest layer of a sum sets the scale, and one that it hides vanishes."""
    layers = [(*factors(20, 1, 2, 4, 6), 1.0, False), (*factors(20, 1, 2, 4, 6, seed=1), 1.0, False)]
    large, small = (reference.kernel(*one[:3]) for one in layers)
    for scale in (1e-30, 1e-3, 1e3, 1e15):
        scaled = [layers[0], (layers[1][0], layers[1][1] * scale, *layers[1][2:])]
        k = large + small * scale**2
        got = cuda.tangent_gram(kernels(scaled), "highest")
        assert torch.allclose(got.double(), k, rtol=0, atol=BOUNDS["highest"] * k.norm())


def test_moments_of_several_kernels(device, monkeypatch):
    """Of very different scales, one of them zero, in panels of 128 samples."""
    monkeypatch.setattr(panels, "PANEL_BYTES", 1)
    n, o = 140, 2
    layers = [(*factors(n, 1, o, 5, 20), 1.0), (*factors(n, 2, o, 3, 9, seed=1), 0.0), (*factors(n, 1, o, 2, 3), 0.0)]
    layers[0] = (layers[0][0] * 1e18, layers[0][1] * 1e15, 1.0)
    layers[1] = (layers[1][0] * 1e-15, layers[1][1] * 1e-17, 0.0)
    layers.append((layers[2][0], torch.zeros_like(layers[2][1]), 1.0))
    v = torch.randn(n, o, 1, dtype=torch.float64) * 1e30
    (moments,) = cuda.tangent_moments(kernels(*([one] for one in layers)), v, "highest")
    of_labels = (v - v.mean()).flatten()
    for (forward, backward, bias), *got in zip(layers, *moments, strict=True):
        k = reference.kernel(forward, backward, bias)
        bound = BOUNDS["highest"] * k.norm()
        expected = of_labels @ k @ of_labels, reference.centered(k).square().sum(), k.trace(), k.sum()
        bounds = bound * of_labels.norm() ** 2, bound * k.norm(), 1e-13 * k.trace(), bound * n * o
        for one, right, most in zip(got, expected, bounds, strict=True):
            assert (one - right).abs() <= most


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_factors_of_16_bits_are_exact_in_parts(device, dtype):
    forward, backward = factors(33, 1, 4, 9, 40, dtype)
    k = reference.kernel(forward, backward, 1.0)
    got = cuda.tangent_gram(one_layer(forward, backward, 1.0), "highest")
    assert (got - k).norm() <= BOUNDS["highest"] * k.norm()


def test_strided_and_expanded_factors(device):
    forward, backward = factors(21, 1, 5, 6, 24)
    transposed = backward.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)[..., ::2]
    expanded = backward[:1].expand(21, 1, 5, 24)
    for strided in (transposed, expanded):
        k = reference.kernel(forward, strided, 0.0)
        assert (cuda.tangent_gram(one_layer(forward, strided, 0.0), "highest") - k).norm() <= BOUNDS[
            "highest"
        ] * k.norm()


@pytest.mark.parametrize("scales", [(1e-18, 1e-18), (1e18, 1e-18), (1e-18, 1e18), (1e18, 1e18)], ids=str)
def test_extreme_scales(device, scales):
    forward, backward = factors(25, 1, 3, 6, 24)
    forward, backward = forward * scales[0], backward * scales[1]
    k = reference.kernel(forward, backward, 0.0)
    got = cuda.centered_inner_products(one_layer(forward, backward, 0.0), [row_means(k, 3)], "highest")
    assert float(got) == pytest.approx(float(reference.centered(k).square().sum()), rel=BOUNDS["highest"])


@pytest.mark.parametrize(
    ("dtype", "precision", "m"),
    [*((torch.float32, precision, 2048) for precision in BOUNDS), (torch.bfloat16, "highest", 1024)],
    ids=str,
)
def test_sums_over_long_k_keep_their_digits(device, dtype, precision, m):
    """Cutting off instead of rounding adds up over k, unless sums of slices are added with rounding.

    Sums over all of k would lose 2e-6 of themselves at least. The factors have the digits of bf16, so that nothing else
    is lost. At "highest" that holds for as many parts as there are, and for shorter sums than at "medium".
    """
    forward, backward = (factor.abs().to(torch.bfloat16).to(dtype) for factor in factors(1, 1, 2, 3, m))
    k = reference.kernel(forward, backward, 0.0)  # sums that only grow
    assert (cuda.tangent_gram(one_layer(forward, backward, 0.0), precision) - k).norm() <= 1e-6 * k.norm()


def test_long_layers_of_a_sum_keep_their_digits(device):
    """One long layer makes the tiles of all others add slices with rounding."""
    layers = [[factor.abs().to(torch.bfloat16).float() for factor in factors(1, 1, 2, 3, m, seed=m)] for m in (2, 2048)]
    k = sum(reference.kernel(*one, 0.0) for one in layers)
    got = cuda.tangent_gram(kernels([(*one, 0.0) for one in layers]), "medium")
    assert (got - k).norm() <= 1e-6 * k.norm()


def test_zero_factors(device):
    forward, backward = torch.zeros(9, 1, 4), torch.zeros(9, 1, 3, 5)
    assert cuda.tangent_gram(one_layer(forward, backward, 0.0), "highest").count_nonzero() == 0
    zeros = torch.zeros(9, 3, dtype=torch.float64)
    assert float(cuda.centered_inner_products(one_layer(forward, backward, 0.0), [zeros], "highest")) == 0.0


def test_same_bits_in_any_run(device):
    forward, backward = factors(90, 1, 5, 8, 70)
    means = [row_means(reference.kernel(forward, backward, 0.0), 5)]
    results = [cuda.centered_inner_products(one_layer(forward, backward, 0.0), means, "high") for _ in range(3)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize(
    "shape", [(70, 1, 3, 5, 500), (40, 1, 10, 5, 64), (45, 2, 3, 5, 100)], ids=["long k", "many turns", "two positions"]
)
def test_any_schedule(device, library, precision, shape):
    """Warps that are held up, copies and products that come as early or as late as they may: always the same bits."""
    forward, backward = factors(*shape)
    batch, means = one_layer(forward, backward, 1.0), [row_means(reference.kernel(forward, backward, 1.0), shape[2])]
    results = []
    for schedule in SCHEDULES:
        library.set_schedule(schedule)
        results.append(float(cuda.centered_inner_products(batch, means, precision)))
    assert len(set(results)) == 1


def test_float64_and_single_outputs_at_several_positions_take_float64_products(device, monkeypatch):
    monkeypatch.setattr(tiles, "tangent_tiles", None)
    monkeypatch.setattr(tiles, "deviation_tiles", None)
    for forward, backward in (factors(30, 1, 3, 5, 6, torch.float64), factors(30, 2, 1, 5, 6)):
        k = reference.kernel(forward, backward, 1.0)
        means = row_means(k, backward.shape[2])
        got = cuda.centered_inner_products(one_layer(forward, backward, 1.0), [means], "highest")
        assert float(got) == pytest.approx(float(reference.centered(k).square().sum()), rel=1e-13)


# ---- what the kernels are told to do


@pytest.mark.parametrize(
    ("first", "end", "size"),
    [(0, 1, 1), (0, 2, 5), (0, 15, 15), (0, 16, 16), (0, 17, 17), (0, 40, 40), (0, 33, 70), (5, 22, 31), (30, 31, 31)],
    ids=str,
)
def test_tile_bands_visit_each_tile_once(library, first, end, size):
    count = sum(size - row for row in range(first, end))
    pairs = (ctypes.c_int64 * (2 * count))()
    assert library.tile_bands(first, end, size, pairs) == count
    got = list(zip(pairs[::2], pairs[1::2], strict=True))
    assert sorted(got) == [(row, col) for row in range(first, end) for col in range(row, size)]


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 20, 33, 40, 80])
def test_tile_bands_are_of_one_height(library, rows):
    """The last column of tiles, of which each band takes its rows one after the other."""
    size = 100
    pairs = (ctypes.c_int64 * (2 * sum(size - row for row in range(rows))))()
    library.tile_bands(0, rows, size, pairs)
    times = [t for t, col in enumerate(pairs[1::2]) if col == size - 1]
    ends = [i + 1 for i in range(rows) if i + 1 == rows or times[i + 1] != times[i] + 1]
    heights = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    assert len(heights) == -(-rows // 16)
    assert set(heights[:-1]) <= {heights[0]}
    assert heights[0] - heights[-1] < len(heights)


def test_tile_bands_beyond_32_bits(library):
    """The last tile of n = 4,000,000 samples with 10 outputs."""
    library.tile_at.restype = None
    size = 312_500
    count = size * (size + 1) // 2
    pair = (ctypes.c_int64 * 2)()
    library.tile_at(0, size, size, ctypes.c_int64(count - 1), pair)
    assert tuple(pair) == (size - 1, size - 1)
