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


# ---- networks with layers that have no rule, and which parameters are which layer's


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).sin() * self.scale


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class Functional(nn.Module):
    """Uses a weight also outside of its module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x) @ self.inner.weight)


class Transformer(nn.Module):
    """Class token, positions, attention; the table of positions goes through a layer once for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(2, 4), nn.Parameter(torch.randn(1, 1, 4))
        self.positions, self.of_positions = nn.Parameter(torch.randn(1, 4, 4)), nn.Linear(4, 4)
        self.norm, self.attention = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x.view(-1, 3, 2))], 1)
        h = h + self.of_positions(self.positions)
        normed = self.norm(h)
        return self.head((h + self.attention(normed, normed, normed, need_weights=False)[0])[:, 0])


class Mixed(nn.Module):
    """Samples not first, not alone, or not there; a bilinear form; a convolution in groups; a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.turned, self.rows = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.grouped, self.transposed = nn.Conv1d(4, 4, 2, groups=2), nn.ConvTranspose1d(4, 2, 2)
        self.activation, self.bilinear = nn.PReLU(2), nn.Bilinear(3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.flat(x.reshape(-1, 2)).view(-1, 3, 4).tanh()  # [n, 3, 4]
        h = self.turned(h.transpose(0, 1)).transpose(0, 1)
        z = torch.stack([self.rows(row.mean(0)) for row in h])
        y = self.activation(self.transposed(self.grouped(h.transpose(1, 2))))  # [n, 2, 3]
        return self.bilinear(y[:, 0], z)


class Words(nn.Module):
    """Integer inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(9, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embedding(x).prod(1))


def networks_without_rules() -> dict[str, tuple[nn.Module, dict[str, list[str]] | None]]:
    """Name -> model, and its layers where they are not simply the modules."""
    return {
        "own parameter": (OwnParameter(), None),
        "tied": (Tied(), {"first": ["first.weight", "first.bias"], "second": ["second.bias"]}),
        "functional": (Functional(), None),
        "weight norm": (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Tanh(), nn.Linear(4, 3)),
            {
                "0": ["0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"],
                "2": ["2.weight", "2.bias"],
            },
        ),
        "transformer": (Transformer(), None),
        "mixed": (Mixed(), None),
        "words": (Words(), None),
    }
