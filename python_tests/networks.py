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


class Image(nn.Module):
    """Six numbers as an image of one channel, larger for the convolutions to have something to do."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("na,nb->nab", x, x.flip(1)).unsqueeze(1)


def convolutional() -> nn.Module:
    """Strides, dilation, paddings and their modes, norms by channel."""
    network = nn.Sequential(
        Image(),
        nn.Conv2d(1, 4, 3, padding=(1, 2), bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, (2, 3), stride=(2, 1), dilation=(1, 2), padding_mode="reflect", padding=1),
        nn.GroupNorm(3, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 3, 2, padding="same", padding_mode="circular"),
        nn.InstanceNorm2d(3, affine=True),
        nn.Tanh(),
        nn.Flatten(2),
        nn.Conv1d(3, 2, 4, stride=3),
        nn.Flatten(),
        nn.LazyLinear(3),
    ).eval()
    network(torch.zeros(1, 6))
    network[2].running_mean.normal_()
    network[2].running_var.uniform_(0.5, 2.0)
    return network


class Tokens(nn.Module):
    """Linears and norms on sequences, and a Linear that is used on sequences and on their means."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.mix = nn.Linear(2, 7), nn.LayerNorm(7), nn.Linear(7, 7)
        self.rms, self.out = nn.RMSNorm((3, 7)), nn.Linear(7, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(torch.tanh(self.embed(x.view(-1, 3, 2))))
        h = h + torch.relu(self.mix(h))
        h = self.rms(h).mean(1) + self.mix(h.mean(1))
        return self.out(h)


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 1, 2, 3)),
        nn.Conv3d(1, 3, (1, 2, 2), padding=(0, 1, 0)),
        nn.BatchNorm3d(3),
        nn.Flatten(),
        nn.Linear(18, 2),
    ).eval()


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
        "convolutional": convolutional(),
        "tokens": Tokens(),
        "volume": volume(),
    }
