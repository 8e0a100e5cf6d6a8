"""Near-constant kernels on CUDA: their tiles on the emulator of instructions, and all that is not in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import pytest
import reference
import torch
from batches import kernels, one_layer
from emulated import SCHEDULES
from reference import row_means
from torch import Tensor

from ahkernels.ops import cuda, plain
from ahkernels.ops.batch import Layer
from ahkernels.ops.cuda import deviation_kernel, panels, tiles
from ahkernels.ops.near_constant import NearConstant

Factors: TypeAlias = tuple[Tensor, Tensor, float]

BOTH = ("global", "per_output")
BOUNDS = {"highest": 1e-6, "high": 3e-5, "medium": 1e-2}  # relative to the norms of centered kernels


def near(spread: float, n: int, o: int, d: int, m: int, bias: float, seed: int = 0) -> Factors:
    """Factors that differ from their means by about spread."""
    generator = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> Tensor:
        mean = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        return (mean + spread * torch.randn(n, *shape, generator=generator, dtype=torch.float64)).float()

    return factor(1, d), factor(1, o, m), bias


def centered(layer: Factors, centering: str) -> Tensor:
    """C K C in fp64, where the means leave the Jacobian before it is multiplied."""
    forward, backward, bias = layer
    a, g = forward[:, 0].double(), backward[:, 0].double()
    j = torch.cat((torch.einsum("xim,xd->ximd", g, a).flatten(2), bias**0.5 * g), 2)
    psi = reference.centered_features(j, centering).flatten(0, 1)
    return psi @ psi.T


def assert_inner_products(got: Tensor, layers: Sequence[Factors], centering: str, bound: float) -> None:
    k = torch.stack([centered(layer, centering) for layer in layers])
    norms = k.flatten(1).norm(dim=1)
    error = (got - torch.einsum("aij,bij->ab", k, k)).abs()
    assert torch.equal(got, got.T)
    assert error.le(bound * norms[:, None] * norms).all()


def assert_both_centerings(layers: Sequence[Factors], precision: str = "highest") -> None:
    got = cuda.per_output_inner_products(kernels(*([layer] for layer in layers)), precision)
    for found, centering in zip(got, BOTH, strict=True):
        assert_inner_products(found, layers, centering, BOUNDS[precision])


# n, o, d, m, bias: one tile and several, ragged and whole, k beyond the stages of the rings, an output and many.
SHAPES = [
    (13, 1, 3, 5, 1.0),
    (130, 1, 4, 9, 0.0),
    (128, 2, 6, 64, 1.0),
    (14, 10, 7, 70, 1.0),
    (19, 7, 20, 400, 0.0),
    (3, 100, 5, 10, 1.0),
]


@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-4, 1e-7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_kernel_is_its_tiles_and_numbers(shape, spread):
    """K = T + h + h^T + constant, and the means of the rows of T."""
    n, o = shape[:2]
    layer = near(spread, *shape)
    kernel = NearConstant.of(Layer(*layer, False))
    parts = kernel.parts
    p = reference.forward_gram(parts.forward, 0.0)[:, None, :, None]
    q = reference.backward_gram(parts.backward).view(n, o, n, o)
    p_r, p_s = kernel.p[:, None, None, None], kernel.p[None, None, :, None]
    q_r, q_s = kernel.q[:, :, None], kernel.q.permute(2, 0, 1)[None]
    t = (kernel.p0 + p_r + p_s + p) * q + p * (kernel.q0[:, None] + q_r + q_s) + p_r * q_s + q_r * p_s
    assert (kernel.row_means - t.mean(2)).norm() <= 1e-6 * t.mean(2).norm()
    h = kernel.h[:, :, None]
    k = t + h + h.permute(2, 3, 0, 1) + kernel.constant[:, None]
    expected = reference.kernel(*layer) * kernel.scale
    assert (k.view(n * o, n * o) - expected).norm() <= min(1e-7, 10 * spread * 1e-7) * expected.norm()


@pytest.mark.parametrize("spread", [1.0, 1e-4, 1e-7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_near_constant_kernels_keep_their_digits(device, shape, spread):
    assert_both_centerings([near(spread, *shape)])


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("spread", [1.0, 1e-5])
def test_precisions(device, precision, spread):
    assert_both_centerings([near(spread, 14, 10, 7, 70, 1.0)], precision)


@pytest.mark.parametrize("precision", BOUNDS)
def test_three_kernels_in_panels(device, precision, monkeypatch):
    monkeypatch.setattr(panels, "PANEL_BYTES", 1)  # a panel of 128 samples at a time
    assert_both_centerings(
        [near(0.5, 140, 2, 5, 20, 1.0), near(1e-4, 140, 2, 3, 9, 0.0, seed=1), near(1e-2, 140, 2, 2, 3, 1.0, seed=2)],
        precision,
    )


@pytest.mark.parametrize("precision", BOUNDS)
def test_one_output_with_means_of_rows(device, precision):
    layers = [near(1e-3, 60, 1, 5, 20, 1.0), near(1.0, 60, 1, 3, 9, 0.0, seed=1)]
    dense = [reference.kernel(*layer) for layer in layers]
    batch = kernels(*([layer] for layer in layers))
    got = cuda.centered_inner_products(batch, [row_means(k, 1) for k in dense], precision)
    assert_inner_products(got, layers, "global", BOUNDS[precision])


def test_other_means_of_rows_are_subtracted_as_they_are(device):
    layers = [near(0.1, 30, 1, 5, 20, 1.0), near(1.0, 30, 1, 3, 9, 0.0, seed=1)]
    means = [torch.zeros(30, 1, dtype=torch.float64), torch.arange(30.0, dtype=torch.float64).unsqueeze(1)]
    left = []
    for layer, mean in zip(layers, means, strict=True):
        left.append(reference.kernel(*layer) - mean - mean.T + mean.mean())
    expected = torch.stack([torch.stack([(k * c).sum() for c in left]) for k in left])
    got = cuda.centered_inner_products(kernels(*([layer] for layer in layers)), means, "highest")
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scales", [(1e-18, 1e-18), (1e18, 1e18), (1.0, 1e-30), (1e-30, 1.0), (1e30, 1.0), (1.0, 1e30)])
def test_extreme_scales(device, scales):
    for spread in (1.0, 1e-4):
        forward, backward, bias = near(spread, 20, 3, 6, 7, 0.0)
        assert_both_centerings([(forward * scales[0], backward * scales[1], bias)])


@pytest.mark.parametrize("scale", [1e-6, 1e-10, 1e-20, 1e-30])
def test_inputs_that_are_nothing_beside_the_bias(device, scale):
    """Gradients are alike but for the last digit, or the same in all samples."""
    forward, backward = reference.factors(20, 1, 3, 6, 7)
    assert_both_centerings([(scale * forward, 1 + scale * backward, 1.0)])


def test_deviations_of_one_factor_alone(device):
    forward, backward, _ = near(1e-3, 20, 3, 6, 7, 1.0)
    for bias in (0.0, 1.0):
        assert_both_centerings([(forward[:1].expand(20, 1, 6), 1e-20 * backward, bias)])
        assert_both_centerings([(1e-20 * forward, backward[:1].expand(20, 1, 3, 7), bias)])


@pytest.mark.parametrize("zero", ["forward", "backward", "both", "deviations"])
def test_kernels_of_zeros(device, zero):
    forward, backward, _ = near(1.0, 9, 3, 4, 5, 0.0)
    if zero == "deviations":  # constant, and nothing is left of it
        forward, backward = forward[:1].expand(9, 1, 4), torch.ones(9, 1, 3, 5)
    else:
        forward, backward = forward * (zero == "backward"), backward * (zero == "forward")
    got = cuda.per_output_inner_products(one_layer(forward, backward, 0.0), "highest")
    assert float(got[1]) == 0.0
    assert zero == "deviations" or float(got[0]) == 0.0


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (20, 3, 5, 0), (20, 3, 0, 5)], ids=str)
def test_a_sample_and_factors_without_numbers(device, shape):
    layer = near(1.0, *shape, 1.0)
    got = cuda.per_output_inner_products(one_layer(*layer), "highest")
    for found, centering in zip(got, BOTH, strict=True):
        expected = float(centered(layer, centering).square().sum())
        assert float(found) == pytest.approx(expected, rel=BOUNDS["highest"], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_factors_of_16_bits(device, dtype):
    forward, backward, bias = near(0.1, 20, 3, 9, 40, 1.0)
    assert_both_centerings([(forward.to(dtype), backward.to(dtype), bias)])


def test_strided_factors(device):
    forward, backward, bias = near(0.1, 20, 3, 6, 48, 1.0)
    transposed = backward.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)[..., ::2]
    assert_both_centerings([(forward[..., ::3], transposed, bias)])


def test_any_schedule(device, library):
    """Warps that are held up, copies and products that come as early or as late as they may: always the same bits."""
    batch = one_layer(*near(1e-3, 50, 3, 5, 200, 1.0))
    results = []
    for schedule in SCHEDULES:
        library.set_schedule(schedule)
        results.append(cuda.per_output_inner_products(batch, "highest"))
    assert all(torch.equal(one, results[0]) for one in results)


def test_what_tiles_of_deviations_are_not_for(device, monkeypatch):
    """Factors in float64, several positions, sums of layers and Jacobians."""
    monkeypatch.setattr(tiles, "deviation_tiles", None)
    one, several = reference.factors(20, 1, 2, 5, 6), reference.factors(20, 3, 2, 5, 6)
    for batch in (
        one_layer(*(factor.double() for factor in one), 1.0),
        one_layer(*several, 1.0),
        one_layer(*several, 1.0, by_jacobian=True),
        kernels([(*one, 1.0), (*one, 0.0)]),
    ):
        for precision in ("highest", "medium"):
            expected = plain.per_output_inner_products(batch, precision)
            assert torch.equal(cuda.per_output_inner_products(batch, precision), expected)


def test_more_pairs_than_offsets_reach(device, monkeypatch):
    """Samples in whole tiles, 256 rows, with each of two outputs."""
    batch = one_layer(*near(1.0, 65, 2, 3, 4, 1.0))
    expected = plain.per_output_inner_products(batch, "highest")
    monkeypatch.setattr(deviation_kernel, "MOST_PAIRS", 513)
    assert not torch.equal(cuda.per_output_inner_products(batch, "highest"), expected)
    monkeypatch.setattr(deviation_kernel, "MOST_PAIRS", 512)
    assert torch.equal(cuda.per_output_inner_products(batch, "highest"), expected)


def test_too_little_work_for_tiles(device, monkeypatch):
    """130 rows squared times 5 numbers, of each of two kernels."""
    batch = kernels(*([near(1.0, 65, 2, 3, 5, 1.0)] for _ in range(2)))
    expected = plain.per_output_inner_products(batch, "highest")
    monkeypatch.setattr(deviation_kernel, "LEAST_MULTIPLY_ADDS", 2 * 130**2 * 5)
    assert not torch.equal(cuda.per_output_inner_products(batch, "highest"), expected)
    monkeypatch.setattr(deviation_kernel, "LEAST_MULTIPLY_ADDS", 2 * 130**2 * 5 + 1)
    assert torch.equal(cuda.per_output_inner_products(batch, "highest"), expected)
