"""The diagonal blocks of centered kernels against dense kernels in fp64, on every route and close to constant."""

from __future__ import annotations

import pytest
import reference
import torch
from torch import Tensor

import ahkernels as ah
from ahkernels import diagonal_blocks
from ahkernels.diagonal_blocks import centered_diagonal_blocks

# n, s, o, d, m, bias, by_jacobian
SHAPES = [
    (1, 1, 2, 3, 4, True, False),
    (9, 1, 1, 3, 4, True, False),
    (30, 1, 10, 7, 20, False, False),
    (12, 5, 3, 4, 6, True, False),
    (12, 5, 3, 4, 6, True, True),
    (12, 5, 3, 4, 6, False, True),
    (8, 1, 2, 5, 0, True, False),
    (8, 1, 2, 0, 9, True, False),
    (8, 4, 2, 0, 9, True, True),
    (8, 2, 2, 0, 9, False, False),
]


def kernel_of(forward: Tensor, backward: Tensor, bias: bool, by_jacobian: bool) -> ah.TangentKernel:
    return ah.TangentKernel(ah.LayerFactors(forward, backward, bias, by_jacobian=by_jacobian))


def blocks_of(k: Tensor, n: int, o: int) -> Tensor:
    """The blocks [n, o, o] on the diagonal of C K C."""
    centered = reference.centered(k, "per_output", o).view(n, o, n, o)
    return torch.einsum("xixj->xij", centered)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("few_numbers", [False, True])
def test_against_dense_kernels(shape, dtype, few_numbers, monkeypatch):
    if few_numbers:  # several slices of samples
        monkeypatch.setattr(diagonal_blocks, "chunk_elements", lambda _: 1600)
    *sizes, bias, by_jacobian = shape
    n, _, o = sizes[:3]
    forward, backward = reference.factors(*sizes, dtype)
    k = reference.kernel(forward, backward, float(bias))
    found = centered_diagonal_blocks(kernel_of(forward, backward, bias, by_jacobian))
    torch.testing.assert_close(found, blocks_of(k, n, o), rtol=0, atol=1e-13 * (float(k.abs().max()) + 1))


def test_of_a_sum_of_layers():
    first, second = (reference.factors(7, s, 2, 3, 4, torch.float64, seed=s) for s in (1, 3))
    kernel = kernel_of(*first, True, False) + kernel_of(*second, False, True)
    k = reference.kernel(*first, 1.0) + reference.kernel(*second, 0.0)
    torch.testing.assert_close(centered_diagonal_blocks(kernel), blocks_of(k, 7, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("by_jacobian", [False, True])
@pytest.mark.parametrize("spread", [1e-3, 1e-5, 1e-7])
def test_digits_close_to_constant(spread, by_jacobian):
    """The blocks are smaller than those of K by the square of `spread`."""
    generator = torch.Generator().manual_seed(0)

    def factor(*shape: int) -> Tensor:
        mean = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        return mean + spread * torch.randn(20, *shape, generator=generator, dtype=torch.float64)

    a, g = factor(2, 5).float(), factor(2, 3, 4).float()
    found = centered_diagonal_blocks(kernel_of(a, g, True, by_jacobian))
    a, g = a.double(), g.double()
    deviation, mean_a = a - a.mean(0), a.mean(0)
    of_weights = torch.einsum("xsim,xsd->ximd", g, deviation) + torch.einsum("xsim,sd->ximd", g - g.mean(0), mean_a)
    psi = torch.cat([of_weights.flatten(2), (g - g.mean(0)).sum(1)], 2)
    psi -= psi.mean(0)
    torch.testing.assert_close(found, psi @ psi.mT, rtol=1e-7, atol=1e-7 * float((psi @ psi.mT).abs().max()))
