"""Image networks for 32 x 32 inputs: VGG19 with and without batch normalisation, ResNet18, a small vision transformer.

Weights depend on the arguments alone: torch's global random state is neither read nor changed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import isqrt

import torch
from torch import Tensor, nn

SIDE = 32
VGG19 = (64, 64, "pool", 128, 128, "pool", *[256] * 4, "pool", *[512] * 4, "pool", *[512] * 4, "pool")


class FlatImages(nn.Module):
    """Square images of d / channels pixels as 32 x 32: pixels repeated while they fit, zeros around; [n, d] -> image.

    Zero is the mean of a standardised data set.

    Raises:
        ValueError: If d is not that of square images of 1 ... 32 pixels a side.
    """

    def __init__(self, d: int, channels: int) -> None:
        super().__init__()
        self.channels, self.side = channels, isqrt(d // channels)
        if self.side**2 * channels != d or not 1 <= self.side <= SIDE:
            raise ValueError(f"d: expected {channels} times a square of 1 ... {SIDE}, got {d}")

    def forward(self, x: Tensor) -> Tensor:
        times = SIDE // self.side
        images = x.unflatten(1, (self.channels, self.side, self.side))
        images = images.repeat_interleave(times, 2).repeat_interleave(times, 3)
        missing = SIDE - times * self.side
        before, after = missing // 2, missing - missing // 2
        return nn.functional.pad(images, (before, after, before, after))


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module that ``build`` makes with the random state of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def vgg19(outputs: int, seed: int, *, channels: int = 3, width: float = 1.0, batch_norm: bool = False) -> nn.Module:
    """16 convolutions of 3 x 3 and a linear layer, as used on CIFAR.

    Weights of layers with biases are drawn from N(0, 2 / fan_in) and their biases are zero, since without batch
    normalisation the signal dies out from torch's own start.

    Args:
        outputs: The number of classes.
        seed: The seed of the weights.
        channels: The channels of an image.
        width: The factor of all channel numbers.
        batch_norm: Whether convolutions have batch normalisation in place of biases; the paper's have none.

    Returns:
        A module [n, channels, 32, 32] -> [n, outputs].
    """

    def convolution(before: int, after: int) -> list[nn.Module]:
        if batch_norm:
            return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        return [with_kaiming_start(nn.Conv2d(before, after, 3, padding=1))]

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        before = channels
        for size in VGG19:
            if isinstance(size, str):
                layers.append(nn.MaxPool2d(2))
                continue
            after = max(1, int(size * width))
            layers += [*convolution(before, after), nn.ReLU()]
            before = after
        last = nn.Linear(before, outputs)
        return nn.Sequential(*layers, nn.Flatten(), last if batch_norm else with_kaiming_start(last))

    return seeded(build, seed)


def with_kaiming_start(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """The layer with weights from N(0, 2 / fan_in) and biases of zero."""
    nn.init.kaiming_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3 beside the identity, or beside a convolution of 1 x 1 where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(h + self.shortcut(x))


def resnet18(outputs: int, seed: int, *, channels: int = 3, width: float = 1.0) -> nn.Module:
    """Eight residual blocks of 64 to 512 channels with batch normalisation and no pooling at first, as used on CIFAR.

    Arguments and the module are as in ``vgg19``.
    """

    def build() -> nn.Module:
        sizes = [max(1, int(size * width)) for size in (64, 64, 128, 256, 512)]
        layers: list[nn.Module] = [nn.Conv2d(channels, sizes[0], 3, padding=1, bias=False), nn.BatchNorm2d(sizes[0])]
        layers.append(nn.ReLU())
        for i, (before, after) in enumerate(pairwise(sizes)):
            layers += [ResidualBlock(before, after, 1 if i == 0 else 2), ResidualBlock(after, after, 1)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], outputs))

    return seeded(build, seed)


class TransformerBlock(nn.Module):
    """Attention and a feed-forward network, each after a norm and beside the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        z = self.norm1(h)
        h = h + self.attention(z, z, z, need_weights=False)[0]
        return h + self.down(nn.functional.gelu(self.up(self.norm2(h))))


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, blocks, and a linear layer on the class token."""

    def __init__(self, outputs: int, channels: int, width: int, depth: int, heads: int, patch: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (32 // patch) ** 2, width))
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(x), -1, -1), h], 1) + self.positions
        return self.head(self.norm(self.blocks(h)[:, 0]))


def vision_transformer(
    outputs: int, seed: int, *, channels: int = 3, width: int = 64, depth: int = 4, heads: int = 4, patch: int = 8
) -> nn.Module:
    """A small vision transformer, before its norms; [n, channels, 32, 32] -> [n, outputs].

    Args:
        outputs: The number of classes.
        seed: The seed of the weights.
        channels: The channels of an image.
        width: The numbers for each token.
        depth: The number of blocks.
        heads: The heads of the attention.
        patch: The pixels along the side of a patch.
    """
    return seeded(lambda: VisionTransformer(outputs, channels, width, depth, heads, patch), seed)
