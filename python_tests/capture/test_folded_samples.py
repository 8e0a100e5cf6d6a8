"""Modules that see several rows for each sample, such as windows of an image or words of a text."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ahkernels as ah
from python_tests.capture.against_jacobians import check


class Folded(nn.Module):
    """Positions [n, t, d] go through a block as rows of their own, in an order that a test gives."""

    def __init__(self, block: nn.Module, fold: Callable[[Tensor], Tensor], unfold: Callable[[Tensor, int], Tensor]):
        super().__init__()
        self.first, self.block, self.head = nn.Linear(3, 4), block, nn.Linear(4, 3)
        self.fold, self.unfold = fold, unfold

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = h + self.unfold(self.block(self.fold(h)), len(x))
        return self.head(torch.tanh(h).mean(1))


class Attention(nn.Module):
    """Attention within each row [t, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).chunk(3, -1)
        return self.out((q @ k.mT).softmax(-1) @ v)


def rows(h: Tensor) -> Tensor:
    return h.flatten(0, 1)


def apart(h: Tensor, n: int) -> Tensor:
    return h.unflatten(0, (n, -1))


def windows(h: Tensor) -> Tensor:
    return h.unflatten(1, (-1, 2)).flatten(0, 1)  # [n t / 2, 2, d]


def of_windows(h: Tensor, n: int) -> Tensor:
    return h.unflatten(0, (n, -1)).flatten(1, 2)


def words_first(h: Tensor) -> Tensor:
    return h.transpose(0, 1).flatten(0, 1)


def from_words_first(h: Tensor, n: int) -> Tensor:
    return h.unflatten(0, (-1, n)).transpose(0, 1)


def inputs(n: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(n, 6, 3, dtype=torch.float64)


BLOCKS = {
    "linear": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4, bias=False)),
    "norm": lambda: nn.LayerNorm(4),
    "own": lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU()),
}


@pytest.mark.parametrize("n", [1, 4, 7])
@pytest.mark.parametrize("block", BLOCKS)
def test_rows(block, n):
    torch.manual_seed(1)
    assert check(Folded(BLOCKS[block](), rows, apart).double(), inputs(n)) == set()


@pytest.mark.parametrize("n", [2, 7])
def test_windows(n):
    torch.manual_seed(1)
    assert check(Folded(Attention(), windows, of_windows).double(), inputs(n)) == set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_precision(dtype):
    torch.manual_seed(1)
    model, x, y = Folded(Attention(), windows, of_windows).double(), inputs(12), torch.arange(12) % 3
    expected = ah.layerwise_alignment(model, x, y).cka
    report = ah.layerwise_alignment(model.to(dtype), x.to(dtype), y, certify=1)
    assert torch.allclose(report.cka, expected, atol=1e-5 if dtype == torch.float32 else 2e-2)
    assert "fallback" not in [one.route for one in ah.explain(model, x.to(dtype))]


@pytest.mark.parametrize("certify", [0, 1])
@pytest.mark.parametrize("n", [7, 12])
def test_rows_of_samples_that_are_not_one_after_the_other(n, certify):
    """The layers inside are found not to be in the order of the samples, without a certificate, too."""
    torch.manual_seed(1)
    model, x, y = Folded(BLOCKS["linear"](), words_first, from_words_first).double(), inputs(n), torch.arange(n) % 3
    in_order = Folded(model.block, rows, apart).double()
    in_order.load_state_dict(model.state_dict())
    found = ah.layerwise_alignment(model, x, y, certify=certify)
    assert torch.allclose(found.cka, ah.layerwise_alignment(in_order, x, y).cka, rtol=1e-9)
    assert {one.layer for one in ah.explain(model, x) if one.route == "fallback"} == {"block.0", "block.2"}


@pytest.mark.parametrize("budget", [1 << 14, 1 << 30])
def test_budgets(budget):
    torch.manual_seed(1)
    model, x, y = Folded(Attention(), windows, of_windows).double(), inputs(40), torch.arange(40) % 3
    expected = ah.layerwise_alignment(model, x, y, layers="*").cka
    found = ah.layerwise_alignment(model, x, y, memory_budget=budget, certify=1).cka
    assert torch.allclose(found, expected, rtol=1e-9)
