"""A network whose layers but the last are frozen: its features, its last layer, and alignment by layer."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import ahkernels as ah
from experiments.common import data
from experiments.common.measuring import CENTERINGS, constant_backward_grams
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
def last_layer(network: InitialNetwork, noise: float, bias: bool) -> nn.Linear:
    """The last layer of a network as initialised, times ``noise``; a bias is zero at the start."""
    weight = noise * network.weight(network.depth)
    last = nn.utils.skip_init(nn.Linear, *reversed(weight.shape), bias=bias, device=weight.device)
    last.weight.copy_(weight)
    if bias:
        nn.init.zeros_(last.bias)
    return last


def aligned(network: InitialNetwork, last: nn.Linear, x: Tensor, y: Tensor, precision: str) -> Row:
    """Columns <kind>/<centering>/<layer> for the kinds cka and backward_cka, and forward_cka/<layer>."""
    found: dict[str, dict[str, float]] = {}
    for kernel in network.tangent_kernels(x, last, precision):
        of_layer = {"forward_cka": ah.cka(kernel.forward_gram(), y)}
        for centering in CENTERINGS:
            of_layer[f"cka/{centering}"] = ah.cka(kernel, y, centering=centering)
            with constant_backward_grams():
                of_layer[f"backward_cka/{centering}"] = ah.cka(kernel.backward_gram(), y, centering=centering)
        found[kernel.name] = of_layer
    kinds = next(iter(found.values()))
    return {f"{kind}/{layer}": found[layer][kind] for kind in kinds for layer in reversed(found)}
