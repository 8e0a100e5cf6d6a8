"""Networks that the capture tests measure: every shape of module graph that a Linear can be part of."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


def mlp(depth: int, width: int, inputs: int, outputs: int, *, bias: bool) -> nn.Sequential:
    sizes = [inputs, *[width] * (depth - 1), outputs]
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layer = nn.Linear(fan_in, fan_out, bias=bias)
        nn.init.normal_(layer.weight, std=(2 / fan_in) ** 0.5)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """Functional and in-place activations around residual connections."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 9), nn.Linear(9, 9, bias=False), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        h = torch.relu_(z)
        h = h + torch.tanh(self.inner(h))
        h += 1.0  # after `inner` has taken it
        return self.last(h)


class Branching(nn.Module):
    """Two branches that meet, one of them used by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(6, 7), nn.Linear(6, 7), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([torch.sin(self.left(x)), self.right(input=x).exp()], 1))


class Shared(nn.Module):
    """One module used three times, once on its own output."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(6, 6, bias=bias), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        return self.out(torch.tanh(self.inner(h)) + self.inner(x**2))


class NormedEval(nn.Module):
    """Norms and dropout, harmless in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.batch_norm = nn.BatchNorm1d(8)
        self.layer_norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(8, 3)
        self.batch_norm.running_mean.normal_()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(torch.relu(self.layer_norm(self.batch_norm(self.first(x))))))


def all_networks() -> dict[str, nn.Module]:
    return {
        "deep": mlp(100, 8, 6, 1, bias=False),
        "shallow": mlp(2, 30, 6, 10, bias=True),
        "bias": mlp(4, 11, 6, 3, bias=True),
        "in-place": nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 2)
        ),
        "residual": Residual(),
        "branching": Branching(),
        "shared": Shared(bias=False),
        "shared with bias": Shared(bias=True),
        "frozen": mlp(3, 9, 6, 3, bias=True).requires_grad_(False),
        "norms": NormedEval(),
    }
