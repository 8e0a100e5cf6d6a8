"""The paper's network (equation 8): fully connected, ReLU; and the networks that --model chooses from.

z_1 = W_1 x,  z_l = W_l relu(z_{l-1}),  f(x) = z_L,  with entries of W_l drawn from N(0, 2 / fan_in). Biases, which the
paper trains and does not write, and Xavier's variance, which it has in places, are options.
"""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from experiments.common import vision
from experiments.common.data import Dataset

IMAGE_NETWORKS = {"vgg19": vision.vgg19, "resnet18": vision.resnet18}
INITIALISATIONS = ("kaiming", "xavier")
MODELS = ("feedforward", *IMAGE_NETWORKS)


def feedforward(
    inputs: int,
    width: int,
    depth: int,
    outputs: int,
    seed: int,
    *,
    bias: bool = False,
    initialisation: str = "kaiming",
) -> nn.Sequential:
    """A network of ``depth`` linear layers named layer1 ... layerL, with relu1 ... between them.

    Its weights depend on the arguments alone: torch's global random state is neither read nor changed.

    Args:
        inputs: The dimension d of a sample.
        width: The units N of every hidden layer.
        depth: The number L of linear layers.
        outputs: The dimension o of the last layer.
        seed: The seed of the weights.
        bias: Whether layers have biases, which are zero at the start.
        initialisation: One of INITIALISATIONS; see ``initial_weight``.

    Returns:
        A module [n, d] -> [n, o], float32 on the CPU.

    Raises:
        ValueError: If a size is below 1.
    """
    for name, value in (("inputs", inputs), ("width", width), ("depth", depth), ("outputs", outputs)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    sizes = [inputs, *[width] * (depth - 1), outputs]
    generator = torch.Generator().manual_seed(seed)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=bias)
        layer.weight = nn.Parameter(initial_weight(fan_in, fan_out, generator, initialisation))
        if bias:
            nn.init.zeros_(layer.bias)
        modules[f"layer{index}"] = layer
        if index < depth:
            modules[f"relu{index}"] = nn.ReLU()
    return nn.Sequential(modules)


def feedforward_on(dataset: Dataset, width: int, depth: int, seed: int, **options: Any) -> nn.Sequential:
    """A ``feedforward`` network for a data set, on the data set's device."""
    model = feedforward(dataset.train_x.shape[1], width, depth, dataset.classes, seed, **options)
    return model.to(dataset.train_x.device)


def initial_weight(
    fan_in: int, fan_out: int, generator: torch.Generator, initialisation: str = "kaiming"
) -> torch.Tensor:
    """A weight [fan_out, fan_in] of independent normal entries, float32 on the CPU.

    Their variance is 2 / fan_in with "kaiming" and 2 / (fan_in + fan_out) with "xavier".
    """
    scale = fan_in if initialisation == "kaiming" else fan_in + fan_out
    return torch.empty(fan_out, fan_in).normal_(0.0, math.sqrt(2.0 / scale), generator=generator)


# ---- what the options --model, --depth, --width, --bias, --initialisation and --width-factor say


def network(args: argparse.Namespace, dataset: Dataset, seed: int) -> nn.Module:
    """The model before training, [n, d] -> [n, classes], on the device of the data set."""
    if args.model == "feedforward":
        options = {"bias": args.bias, "initialisation": args.initialisation}
        return feedforward_on(dataset, args.width, args.depth, seed, **options)
    build = IMAGE_NETWORKS[args.model]
    model = nn.Sequential(
        OrderedDict(
            images=vision.FlatImages(dataset.train_x.shape[1], dataset.channels),
            network=build(dataset.classes, seed, channels=dataset.channels, width=args.width_factor),
        )
    )
    # CPUs train convolutions faster with the channels of a pixel side by side.
    return model.to(dataset.train_x.device, memory_format=torch.channels_last)


def options_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The options that the model before training depends on, by their names in the namespace."""
    return ("depth", "width", "bias", "initialisation") if args.model == "feedforward" else ("width_factor",)


def described(args: argparse.Namespace) -> str:
    """The kind of the model, its size and how it starts in words."""
    if args.model != "feedforward":
        return f"{args.model} network of width × {args.width_factor:g}"
    return f"feedforward network of depth {args.depth}, width {args.width}, {described_start(args)}"


def described_start(args: argparse.Namespace) -> str:
    """What the options --bias and --initialisation say in words."""
    return f"{'with' if args.bias else 'without'} biases, {args.initialisation.capitalize()} initialisation"
