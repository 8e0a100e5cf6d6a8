"""Forward and backward information at finite width: averages over random networks, from this package's own capture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from ahkernels.capture import iter_tangent_kernels
from ahkernels.kernel import TangentKernel

Array = NDArray[np.float64]


class Average(NamedTuple):
    """An average over independent draws.

    Attributes:
        mean: of the draws.
        error: standard error of the mean.
    """

    mean: Array
    error: Array


@dataclass(frozen=True, eq=False)
class FiniteWidth:
    """Information of every layer of random networks, averaged over networks and outputs.

    Attributes:
        layers: names of the k layers, in forward order.
        draws: number of networks.
        forward: I^f_{l,N} = E[<phi(z_{l-1}(x)), phi(z_{l-1}(x'))>] / fan-in, [k, n, n].
        backward: N I^b_{l,N} = E[<df/dz_l(x), df/dz_l(x')>] for an output f, [k, n, n].
        tangent: tangent kernel of the weights and one output over the fan-in, [k, n, n].
        forward_loss: 1 - correlation of the layer's inputs in each network, [k, n, n].
    """

    layers: list[str]
    draws: int
    forward: Average
    backward: Average
    tangent: Average
    forward_loss: Average


def finite_width(
    build: Callable[[int], nn.Module], x: Tensor, draws: int = 32, seed: int = 0, progress: bool = False
) -> FiniteWidth:
    """Monte-Carlo estimates of forward and backward information (definition 2), with standard errors.

    Args:
        build: makes the network of a seed, of linear layers without positions. Where a residual branch is scaled
            outside of its layer, the layer's gradients are scaled, too.
        x: [n, ...] samples.
        draws: networks, of seeds seed, ..., seed + draws - 1; at least 2.
        seed: of the first network.
        progress: show a progress bar.

    Raises:
        ValueError: if there are fewer than 2 draws, a layer is no linear one, or networks differ in their layers; and
            what capture raises.
        TypeError: if `build` is no function.
    """
    if isinstance(build, nn.Module) or not callable(build):
        raise TypeError(f"build: expected a function that makes the network of a seed, got {type(build).__name__}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed: expected a whole number, got {seed!r}")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 2:
        raise ValueError(f"draws: expected a whole number of at least 2, got {draws!r}")
    values: list[Array] = []
    layers: list[str] = []
    for draw in tqdm(range(draws), desc="networks", unit="network", disable=not progress):
        model = build(seed + draw)
        kernels = iter_tangent_kernels(model, x, outputs="trace", precision="highest")
        found = {name: _information(name, kernel) for name, kernel in kernels}
        layers = layers or list(found)
        if list(found) != layers:
            raise ValueError(f"build: expected networks with layers {layers}, got {list(found)} for seed {seed + draw}")
        values.append(np.stack(list(found.values())))
    stacked = np.stack(values)  # [draws, k, 4, n, n]
    mean, error = stacked.mean(axis=0), stacked.std(axis=0, ddof=1) / np.sqrt(draws)
    return FiniteWidth(layers, draws, *(Average(mean[:, i], error[:, i]) for i in range(4)))


def _information(name: str, kernel: TangentKernel) -> Array:
    """Forward and backward Gram, their product, of one output in the mean over outputs, and forward loss, [4, n, n]."""
    if len(kernel.factors) != 1 or not kernel.factored or kernel.factors[0].forward.shape[1] != 1:
        raise ValueError(
            f"build: expected linear layers that are used once for a sample, got {name!r}, which is not one"
        )
    term = kernel.factors[0]
    forward = (_dense(kernel.forward_gram()) - float(term.bias)) / term.forward.shape[-1]
    backward = _dense(kernel.backward_gram()) / kernel.outputs.total
    length = np.sqrt(np.diagonal(forward))
    with np.errstate(divide="ignore", invalid="ignore"):  # of an input that no unit is active for
        loss = 1 - forward / length[:, None] / length[None, :]
    return np.stack([forward, backward, forward * backward, loss])


def _dense(kernel: TangentKernel) -> Array:
    return kernel.to_dense().to("cpu", torch.float64).numpy()
