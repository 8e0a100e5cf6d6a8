"""Random but realistic inputs: images with class structure, He-initialised networks, and factors of a layer."""

import functools
import itertools

import torch

from experiments.common import vision

IMAGE_NETWORKS = {
    "resnet18": vision.resnet18,
    "vgg19": functools.partial(vision.vgg19, batch_norm=True),
    "vgg19 without norms": vision.vgg19,
}


def images(n: int, inputs: int = 784, outputs: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x [n, inputs] in [0, 1], every class around its own template, and labels y [n]."""
    generator = torch.Generator().manual_seed(seed)
    templates = torch.rand(outputs, inputs, generator=generator)
    y = torch.randint(outputs, (n,), generator=generator)
    return 0.5 * templates[y] + 0.5 * torch.rand(n, inputs, generator=generator), y


def mlp(depth: int = 10, width: int = 256, inputs: int = 784, outputs: int = 10, seed: int = 1) -> torch.nn.Sequential:
    """Bias-free ReLU network of `depth` linear layers, He initialisation."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [inputs, *[width] * (depth - 1), outputs]
    layers: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        linear = torch.nn.Linear(fan_in, fan_out, bias=False)
        torch.nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=generator)
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def image_network(
    name: str, n: int, outputs: int = 10, seed: int = 0, width: float = 1.0
) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """Network of IMAGE_NETWORKS, x [n, 3, 32, 32] around a template for each class, and labels y [n]."""
    model = IMAGE_NETWORKS[name](outputs, seed=seed, width=width).eval()
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % outputs
    templates = torch.randn(outputs, 3, 32, 32, generator=generator)
    return model, 0.5 * templates[y] + torch.randn(n, 3, 32, 32, generator=generator), y


@torch.no_grad()
def factors(n: int, o: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """a [n, width], g [n, o, width] and labels y [n] of the third of five layers of an MLP on images."""
    x, y = images(n, outputs=o)
    first, _, second, _, third, _, fourth, _, fifth = mlp(5, width, outputs=o)
    a = second(first(x).relu()).relu()
    z = third(a)
    later = fourth(z.relu())
    g = (fifth.weight * (later > 0)[:, None] @ fourth.weight) * (z > 0)[:, None]  # [n, o, width]
    return a, g.contiguous(), y
