"""Near-constant kernels of layers with several positions go by their Jacobian where pairs of positions cost more."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

import ahkernels as ah
from ahkernels import inner_products
from ahkernels.ops import KernelBatch
from ahkernels.tile_route import for_centering


def factors(n: int, s: int, o: int, d: int, m: int) -> ah.LayerFactors:
    a = 1 + torch.randn(n, s, d, dtype=torch.float64)
    g = torch.randn(1, s, o, m, dtype=torch.float64) + 0.1 * torch.randn(n, s, o, m, dtype=torch.float64)
    return ah.LayerFactors(a, g, bias=True)


@pytest.mark.parametrize(
    ("shape", "centering", "by_jacobian"),
    [
        ((4, 64, 10, 2304, 256), "per_output", True),  # a convolution of 8 x 8 positions, few samples
        ((128, 64, 10, 2304, 256), "per_output", True),  # 4096 forward Grams fit no cache
        ((128, 64, 10, 2304, 256), "global", False),  # positions are rows of tiles
        ((128, 64, 10, 2304, 256), None, False),
        ((128, 64, 1, 2304, 256), "global", True),  # one output: near-constant, too
        ((128, 4, 10, 2304, 256), "per_output", False),  # 16 forward Grams are kept for all outputs
        ((128, 1, 10, 2304, 256), "per_output", False),
    ],
)
def test_choice(shape, centering, by_jacobian):
    n, s, o, d, m = shape
    empty = torch.empty(1, dtype=torch.float32)
    batch = KernelBatch([empty.expand(n, s, d)], [empty.expand(n, s, o, m)], [1.0], [False], [1])
    assert for_centering(batch, centering).by_jacobian == [by_jacobian]


@pytest.mark.parametrize("shape", [(4, 16, 5, 30, 8), (60, 14, 3, 40, 20), (7, 30, 1, 12, 12)])
@pytest.mark.parametrize("centering", ["global", "per_output"])
def test_numbers_are_those_of_pairs(shape, centering):
    kernel = ah.TangentKernel(factors(*shape))
    y = torch.arange(shape[0]) % 2 if shape[2] == 1 else torch.arange(shape[0]) % shape[2]
    found = kernel.frobenius_norm(centering=centering), ah.cka(kernel, y, centering=centering)
    with mock.patch.object(inner_products, "for_centering", lambda batch, _: batch):
        wanted = kernel.frobenius_norm(centering=centering), ah.cka(kernel, y, centering=centering)
    dense = kernel.to_dense().view(shape[0], shape[2], shape[0], shape[2])
    means = (0, 1), (2, 3)
    if centering == "per_output":
        means = (0,), (2,)
    for some in means:
        dense = dense - dense.mean(some, keepdim=True)
    assert found == pytest.approx(wanted, rel=1e-11)
    assert found[0] == pytest.approx(float(dense.norm()), rel=1e-9)
