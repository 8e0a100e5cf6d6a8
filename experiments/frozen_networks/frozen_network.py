"""A network whose layers but the last are frozen: its features, its last layer, and alignment by layer."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import ahkernels as ah
from experiments.common import data
from experiments.common.running import say
from experiments.common.store import Row
from experiments.frozen_networks.initial_network import InitialNetwork


@dataclass(frozen=True)
class Frozen:
    """What all runs of one width share.

    Attributes:
        network: The network as initialised.
        features: The data set with the last layer's inputs, [n, N], in place of the images.
    """

    network: InitialNetwork
    features: data.Dataset


def freeze(args: argparse.Namespace, dataset: data.Dataset, width: int) -> Frozen:
    """Make the network of a width and its features. Both follow from the seed, and are made anew when a run goes on."""
    count = len(dataset.train_y) + len(dataset.test_y)
    say(f"width {width}: features of {count:,} images, which no checkpoint holds")
    network = InitialNetwork(dataset.train_x.shape[1], width, args.depth, dataset.classes, args.seed, args.device)
    train_x, test_x = (
        network.features(x, f"width {width}, {part} images")
        for part, x in (("training", dataset.train_x), ("test", dataset.test_x))
    )
    return Frozen(network, replace(dataset, train_x=train_x, test_x=test_x))


@torch.no_grad()
def last_layer(network: InitialNetwork, noise: float) -> nn.Linear:
    """The last layer of a network as initialised, times ``noise``."""
    weight = noise * network.weight(network.depth)
    last = nn.utils.skip_init(nn.Linear, *reversed(weight.shape), bias=False, device=weight.device)
    last.weight.copy_(weight)
    return last


def aligned(network: InitialNetwork, last: nn.Linear, x: Tensor, y: Tensor, precision: str) -> Row:
    """Columns cka/<layer>, forward_cka/<layer> and backward_cka/<layer>."""
    found: dict[str, dict[str, float]] = {"cka": {}, "forward_cka": {}, "backward_cka": {}}
    for kernel in network.tangent_kernels(x, last.weight.detach(), precision):
        found["cka"][kernel.name] = ah.cka(kernel, y)
        found["forward_cka"][kernel.name] = ah.cka(kernel.forward_gram(), y)
        found["backward_cka"][kernel.name] = ah.cka(kernel.backward_gram(), y)
    return {f"{name}/{layer}": of[layer] for name, of in found.items() for layer in reversed(of)}
