"""The least that a measurement must do, whoever makes it: flops of GEMMs, and bytes through memory.

Shapes are [out, in] of the weights of a bias-free MLP; n samples and o outputs.
"""

from collections.abc import Sequence

import torch

from benchmarks.common import ours
from benchmarks.common.ceilings import Work

Shapes = Sequence[tuple[int, int]]


def passes(shapes: Shapes, n: int, o: int, layer: int = 0) -> float:
    """Flops of the forward pass, and of o cotangents back to the preactivations of a layer."""
    forward = sum(p * q for p, q in shapes)
    return 2.0 * n * (forward + o * sum(p * q for p, q in shapes[layer + 1 :]))


def grams(shapes: Shapes, n: int, o: int) -> float:
    """Flops of half of the forward and the backward Gram of these layers."""
    return float(sum(n**2 * q + (n * o) ** 2 * p for p, q in shapes))


def product(shape: tuple[int, int], n: int, o: int) -> float:
    """Flops of one product of a layer's kernel with a vector, from the factors."""
    p, q = shape
    return 4.0 * n * (o * p + p * q)


def factors(shapes: Shapes, n: int, o: int) -> float:
    """Bytes of the layers' inputs and of the gradients in their preactivations, in fp32."""
    return 4.0 * sum(n * q + n * o * p for p, q in shapes)


def weights(shapes: Shapes) -> float:
    """Bytes in fp32."""
    return 4.0 * sum(p * q for p, q in shapes)


def module_passes(model: torch.nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Flops of a sample's forward pass, and of the backward pass of one cotangent down to the first layer's output."""
    flops: list[int] = []

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            positions = output[0].numel() // module.weight.shape[0]
            flops.append(2 * positions * module.weight.numel())

    handles = [module.register_forward_hook(count) for module in model.modules()]
    model(x[:1])
    for handle in handles:
        handle.remove()
    return sum(flops), sum(flops[1:])


def image_network(model: torch.nn.Module, x: torch.Tensor, o: int) -> Work:
    """Alignments of a network with convolutions: passes without gradients of parameters, and each layer's route."""
    forward, backward = module_passes(model, x)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return Work(len(x) * (forward + o * backward) + ours.route_flops(model, x), 4 * numbers)
