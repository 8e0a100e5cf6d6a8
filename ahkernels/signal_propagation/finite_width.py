"""Forward and backward information at finite width, as averages over random networks that this package captures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from ahkernels.capture import iter_tangent_kernels
from ahkernels.kernel import TangentKernel

Array = NDArray[np.float64]


class Average(NamedTuple):
    """An average over independent draws.

    Attributes:
        mean: The mean of the draws, any shape.
        standard_error: The standard error of the mean, in the same shape.

    Example:
        >>> import numpy as np
        >>> from ahkernels import signal_propagation as sp
        >>> mean, standard_error = sp.Average(np.array([0.5]), np.array([0.1]))
        >>> print(mean - 2 * standard_error, mean + 2 * standard_error)
        [0.3] [0.7]
    """

    mean: Array
    standard_error: Array


@dataclass(frozen=True, eq=False)
class FiniteWidth:
    """Information in every layer of random networks, averaged over networks and outputs (definition 2).

    Attributes:
        layers: The names of the k layers, in forward order.
        draws: The number of networks.
        forward: I^f_{l,N} = E[<phi(z_{l-1}(x)), phi(z_{l-1}(x'))>] / fan-in, [k, n, n].
        backward: N I^b_{l,N} = E[<df/dz_l(x), df/dz_l(x')>] for one output f, [k, n, n].
        tangent: The tangent kernel of the weights for one output, divided by the fan-in, [k, n, n].
        forward_loss: 1 - correlation of the layer's inputs, averaged after it is taken in each network, [k, n, n].

    Example:
        >>> import numpy as np
        >>> from ahkernels import signal_propagation as sp
        >>> average = sp.Average(np.ones((1, 2, 2)), np.zeros((1, 2, 2)))
        >>> sp.FiniteWidth(["fc1"], 8, average, average, average, average).tangent.mean.shape
        (1, 2, 2)
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
    """Estimates forward and backward information (definition 2) from random networks, with standard errors.

    Args:
        build: A function from a seed to a network, whose layers with parameters are linear and have one position each.
            If a residual branch is scaled outside of its layer, the layer's gradients include the scale.
        x: Samples [n, ...].
        draws: The number of networks, at least 2. Their seeds are seed, ..., seed + draws - 1.
        seed: The seed of the first network.
        progress: Whether to show a progress bar on stderr.

    Returns:
        Averages over the networks.

    Raises:
        ValueError: If there are fewer than 2 draws, the seed is not a whole number, a layer is not linear with one
            position, networks differ in their layers, or a network cannot be captured; see `tangent_kernels`.
        TypeError: If `build` is not a function.

    Example:
        >>> import torch
        >>> from ahkernels import signal_propagation as sp
        >>> def build(seed):
        ...     torch.manual_seed(seed)
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> found = sp.finite_width(build, torch.eye(3, 4), draws=5)
        >>> found.layers, found.backward.mean.shape, found.backward.standard_error.shape
        (['0', '2'], (2, 3, 3), (2, 3, 3))
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
    mean, standard_error = stacked.mean(axis=0), stacked.std(axis=0, ddof=1) / np.sqrt(draws)
    return FiniteWidth(layers, draws, *(Average(mean[:, i], standard_error[:, i]) for i in range(4)))


def _information(name: str, kernel: TangentKernel) -> Array:
    """Computes the four kernels of `FiniteWidth` for one layer of one network, averaged over its outputs, [4, n, n]."""
    if len(kernel.factors) != 1 or not kernel.factored or kernel.factors[0].forward.shape[1] != 1:
        raise ValueError(
            f"build: expected linear layers that are used once for a sample, got {name!r}, which is not one"
        )
    factors = kernel.factors[0]
    forward = (_dense(kernel.forward_gram()) - float(factors.bias)) / factors.forward.shape[-1]
    backward = _dense(kernel.backward_gram()) / kernel.outputs.total
    length = np.sqrt(np.diagonal(forward))
    with np.errstate(divide="ignore", invalid="ignore"):  # an input may have no active unit
        loss = 1 - forward / length[:, None] / length[None, :]
    return np.stack([forward, backward, forward * backward, loss])


def _dense(kernel: TangentKernel) -> Array:
    return kernel.to_dense().to("cpu", torch.float64).numpy()
