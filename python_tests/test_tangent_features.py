"""Psi v and Psi^T u from the factors, against autograd."""

from __future__ import annotations

import pytest
import reference
import torch
from torch import nn

import ahkernels as ah


class Small(nn.Module):
    """A convolution, a norm, a layer that is used twice, and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.LayerNorm(12)
        self.twice = nn.Linear(12, 12, bias=False)
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 12))
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        h = self.norm(torch.tanh(self.convolution(x)).flatten(2).mean(2).repeat(1, 4))
        return self.head(self.scale * torch.tanh(self.twice(torch.tanh(self.twice(h)))))


@pytest.mark.parametrize("keep_factors", [False, True])
@pytest.mark.parametrize("chunk", [1 << 23, 50])
def test_against_autograd(keep_factors, chunk, monkeypatch):
    monkeypatch.setattr(ah.tangent_features, "chunk_elements", lambda factor: chunk)
    torch.manual_seed(0)
    model, x = Small().double(), torch.randn(7, 2, 4, 4, dtype=torch.float64)
    kernels = ah.tangent_kernels(model, x, keep_factors=keep_factors)
    jacobians = reference.jacobians(model, x)
    for name in ("convolution", "norm", "twice", "head"):
        psi, kernel = jacobians[name].reshape(21, -1).T, kernels[name]
        v, u = torch.randn(21, 2, dtype=torch.float64), torch.randn(len(psi), 2, dtype=torch.float64)
        if name == "norm":  # its Jacobian may come in another order
            assert torch.allclose(kernel.vjp(v).norm(dim=0), (psi @ v).norm(dim=0))
            continue
        assert torch.allclose(kernel.vjp(v), psi @ v)
        assert torch.allclose(kernel.jvp(u), psi.T @ u)
        assert torch.allclose(kernel.vjp(v[:, 0]), psi @ v[:, 0])
        assert torch.allclose(kernel.jvp(u[:, 0]), psi.T @ u[:, 0])


def test_groups_outputs_and_adjointness():
    torch.manual_seed(1)
    model, x = Small(), torch.randn(5, 2, 4, 4)
    for outputs in ("all", "trace", "sum", 1):
        kernel = ah.tangent_kernels(model, x, layers={"all": "*"}, outputs=outputs)["all"]
        v = torch.randn(kernel.shape[0], 3, dtype=torch.float64)
        image = kernel.vjp(v)
        u = torch.randn(len(image), 3, dtype=torch.float64)
        assert torch.allclose((image * u).sum(0), (v * kernel.jvp(u)).sum(0))
        assert torch.allclose(image.square().sum(0), kernel.quadratic(v), rtol=1e-6)
        assert torch.allclose(kernel.jvp(image), kernel @ v, rtol=1e-6)


def test_refuses():
    kernel = ah.TangentKernel(ah.LayerFactors(torch.ones(4, 1, 2), torch.ones(4, 1, 3, 5), bias=True))
    with pytest.raises(ValueError, match=r"v: expected shape \[12\] or \[12, columns\], got \[15\]"):
        kernel.vjp(torch.ones(15))
    with pytest.raises(ValueError, match=r"u: expected shape \[15\] or \[15, columns\], got \[12\]"):
        kernel.jvp(torch.ones(12))
    with pytest.raises(TypeError, match="u: expected a tensor"):
        kernel.jvp([1.0])
