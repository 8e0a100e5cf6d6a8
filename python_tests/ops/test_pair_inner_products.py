"""Inner products over some pairs of samples against dense fp64, for the compiled kernels and for plain torch."""

from __future__ import annotations

import pytest
import reference
import torch
from batches import kernels, one_layer
from on_device import OnDevice, devices
from reference import factors
from torch import Tensor

from ahkernels import ops
from ahkernels.ops import TILING, plain

IMPLEMENTATIONS = [
    pytest.param(ops, id="kernels"),
    pytest.param(plain, id="plain torch"),
    *(pytest.param(OnDevice(ops, device), id=f"kernels on {device}") for device in devices()),
]
PANEL = TILING["panel"]

# n, s, o, d, m, bias, by_jacobian, first_end, second_begin
SHAPES = [
    (1, 1, 1, 1, 1, 0.0, False, 1, 0),
    (7, 1, 3, 5, 4, 1.0, False, 7, 0),
    (130, 1, 4, 20, 30, 1.0, False, 130, 0),
    (PANEL + 1, 1, 2, 3, 2, 1.0, False, 1, PANEL),
    (100, 1, 6, 17, 40, 1.0, False, 40, PANEL),
    (150, 1, 1, 30, 20, 0.0, False, 90, 2 * PANEL),
    (130, 3, 2, 20, 30, 1.0, False, 48, PANEL),
    (110, 5, 2, 9, 8, 1.0, True, 31, 2 * PANEL),
    (50, 5, 3, 9, 8, 1.0, True, 50, 0),
    (60, 1, 3, 0, 20, 1.0, False, 20, PANEL),
    (60, 2, 3, 0, 20, 1.0, True, 60, 0),
    (60, 1, 20, 6, 7, 0.0, False, 20, PANEL),
    (3 * PANEL, 1, 12, 20, 0, 0.0, False, PANEL, 2 * PANEL),
]
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}


def expected(ks: list[Tensor], means: list[Tensor], o: int, first_end: int, second_begin: int) -> Tensor:
    """The definition."""
    centered = []
    for k, c in zip(ks, means, strict=True):
        blocks = k.view(len(k) // o, o, -1, o)
        centered.append(blocks - c[:, :, None, :] - c.permute(2, 0, 1)[None])
    if second_begin:
        centered = [one[:first_end, :, second_begin:] for one in centered]
    products = [[float((one * other).sum()) for other in centered] for one in centered]
    return torch.tensor(products, dtype=torch.float64) * (2 if second_begin else 1)


def rounded(mean: Tensor, dtype: torch.dtype) -> Tensor:
    """With the digits of tiles."""
    return mean.to(torch.promote_types(dtype, torch.float32)).double()


def half_means(k: Tensor, o: int, per_output: bool) -> Tensor:
    """Row means less half of the mean of all."""
    blocks = k.view(len(k) // o, o, -1, o)
    means = blocks.mean(2) if per_output else blocks.mean((2, 3)).unsqueeze(2)
    return (means - (means.mean(0) if per_output else means.mean()) / 2).contiguous()


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("per_output", [False, True])
def test_against_the_definition(op, dtype, shape, per_output):
    n, s, o, d, m, bias, by_jacobian, first_end, second_begin = shape
    a, g = factors(n, s, o, d, m, dtype)
    b, h = factors(n, s, o, d, m, dtype, seed=1)
    batch = kernels([(a, g, bias, by_jacobian)], [(a, g, bias, by_jacobian), (b, h, bias, by_jacobian)])
    of_factors = ([], [])
    of_k = batch
    if per_output:
        of_factors = (
            [rounded(one.double().mean(0) + 0.1, dtype) for one in of] for of in (batch.forward, batch.backward)
        )
        of_factors = tuple(of_factors)
        of_k = ops.deviations(batch.double(), *of_factors)
    first, *both = (reference.kernel(*one) for one in zip(of_k.forward, of_k.backward, of_k.bias, strict=True))
    ks = [first, sum(both)]
    means = [half_means(k, o, per_output) for k in ks]
    got = op.pair_inner_products(batch, means, "highest", first_end, second_begin, *of_factors)
    wanted = expected(ks, means, o, first_end, second_begin)
    scale = max(float(wanted.diagonal().max()), float(ks[1].square().sum()) * 1e-8)
    assert (got - wanted).abs().max() <= DTYPES[dtype] * scale


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize(("s", "by_jacobian"), [(1, False), (3, False), (3, True)])
def test_blocks_close_to_constant_keep_their_digits(op, spread, s, by_jacobian):
    n, o, first_end, second_begin = 150, 4, 60, 2 * PANEL
    generator = torch.Generator().manual_seed(0)

    def factor(*shape: int) -> Tensor:
        mean = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        return (mean + spread * torch.randn(n, *shape, generator=generator, dtype=torch.float64)).float()

    a, g = factor(s, 30), factor(s, o, 20)
    batch = one_layer(a, g, 0.0, by_jacobian)
    of_factors = [rounded(a.double().mean(0), a.dtype)], [rounded(g.double().mean(0), g.dtype)]
    deviations = ops.deviations(batch.double(), *of_factors)
    psi = torch.einsum("xsim,xsd->ximd", deviations.backward[0], deviations.forward[0]).flatten(2)
    mean = psi.mean(0)
    pairs = torch.einsum("xip,yjp->xiyj", psi[:first_end] - mean, psi[second_begin:] - mean)
    means = torch.einsum("xip,jp->xij", psi, mean) - mean @ mean.T / 2
    got = op.pair_inner_products(batch, [means.contiguous()], "highest", first_end, second_begin, *of_factors)
    assert float(got) == pytest.approx(2 * float(pairs.square().sum()), rel=1e-5)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_extreme_scales(op, scale):
    a, g = factors(100, 1, 3, 5, 4)
    k = reference.kernel(scale * a, scale * g, 0.0)
    means = half_means(k, 3, False)
    got = op.pair_inner_products(one_layer(scale * a, scale * g, 0.0), [means], "highest", 50, 2 * PANEL)
    assert float(got) == pytest.approx(float(expected([k], [means], 3, 50, 2 * PANEL)), rel=1e-5)


def test_all_pairs_of_three_groups_add_up():
    """The parts of shards are the whole, with means of the whole."""
    a, g = factors(200, 1, 3, 5, 4)
    k = reference.kernel(a, g, 1.0)
    means = half_means(k, 3, False)
    ends = [0, 70, 120, 200]
    total = 0.0
    for first in range(3):
        own = slice(ends[first], ends[first + 1])
        total += float(part(a[own], g[own], means[own]))
        for second in range(first):
            other = slice(ends[second], ends[second + 1])
            room = -(-(own.stop - own.start) // PANEL) * PANEL
            joined = [torch.cat((one[own], one[: room - len(one[own])], one[other])) for one in (a, g, means)]
            total += float(part(*joined, own.stop - own.start, room))
    assert total == pytest.approx(float(reference.centered(k).square().sum()), rel=1e-5)


def part(a: Tensor, g: Tensor, means: Tensor, first_end: int | None = None, second_begin: int = 0) -> Tensor:
    batch = one_layer(a, g, 1.0)
    return ops.pair_inner_products(batch, [means.contiguous()], "highest", first_end or len(a), second_begin)


def test_strides_and_the_dispatcher():
    a, g = factors(60, 1, 3, 5, 4)
    means = [torch.randn(60, 3, 1, dtype=torch.float64)]
    strided = g.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    found = [ops.pair_inner_products(one_layer(a, one, 1.0), means, "high", 20, PANEL) for one in (g, strided)]
    assert torch.equal(*found)
    torch.library.opcheck(
        torch.ops.ahkernels.pair_inner_products, (*one_layer(a, g, 1.0), means, "high", 20, PANEL, [], [])
    )


@pytest.mark.parametrize(
    ("first_end", "second_begin", "words"),
    [(20, 47, "second_begin"), (20, 96, "second_begin"), (0, 48, "first_end"), (49, 48, "first_end"), (20, 0, "all")],
)
def test_groups_that_do_not_fit(first_end, second_begin, words):
    a, g = factors(60, 1, 3, 5, 4)
    with pytest.raises(RuntimeError, match=words):
        ops.pair_inner_products(one_layer(a, g, 1.0), [torch.zeros(60, 3, 1).double()], "high", first_end, second_begin)


@pytest.mark.parametrize("shape", [(60, 3), (60, 3, 2), (59, 3, 1), (60, 2, 1)], ids=str)
def test_means_that_do_not_fit(shape):
    a, g = factors(60, 1, 3, 5, 4)
    with pytest.raises(RuntimeError, match=r"means\[0\]: expected"):
        ops.pair_inner_products(one_layer(a, g, 1.0), [torch.zeros(shape).double()], "high", 20, PANEL)
