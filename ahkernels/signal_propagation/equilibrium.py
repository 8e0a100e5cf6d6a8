"""Losses of forward and backward information, and the layer where they are equal (section 3 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ahkernels.signal_propagation.inputs import InputPairs
from ahkernels.signal_propagation.network import Network, State, require_network
from ahkernels.signal_propagation.propagation import (
    Propagation,
    last_layers,
    layers_within,
    propagate,
    require_depth,
)

Array = NDArray[np.float64]
Over = Literal["sup", "mean"]

POINTS = 64  # log-spaced layers that are tried at a time in the search for an equilibrium


@dataclass(frozen=True, eq=False)
class InformationLoss:
    """Losses of forward and backward information, as the supremum or mean over pairs of inputs (definition 3).

    Attributes:
        depth: The depth L of the network.
        layers: Layer numbers [k].
        forward: Numbers [k]: the supremum or mean of |1 - I^f_l(x, x') / sqrt(I^f_l(x, x) I^f_l(x', x'))|. It falls to
            0 as l grows.
        backward: Numbers [k]: the supremum or mean of |I^b_l(x, x')| / sqrt(I^b_l(x, x) I^b_l(x', x')). It falls to 0
            as L / l grows.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> loss = sp.information_loss(sp.Network("relu"), depth=100, layers=[10, 50])
        >>> bool(loss.forward[0] > loss.backward[0]), bool(loss.forward[1] > loss.backward[1])
        (True, False)
    """

    depth: int
    layers: NDArray[np.int64]
    forward: Array
    backward: Array


def information_loss(
    network: Network,
    depth: int,
    pairs: InputPairs | None = None,
    layers: Sequence[int] | NDArray[np.int64] | None = None,
    over: Over = "sup",
    progress: bool = False,
) -> InformationLoss:
    """Computes the losses of forward and backward information at layers of a network of infinite width (definition 3).

    Args:
        network: The network; theorems 1 and 2 of the paper have `Network("relu")`.
        depth: The depth L.
        pairs: Pairs of inputs; None for the set E_0.1 of equation 10, which is `InputPairs.apart(0.1)`.
        layers: Layer numbers between 1 and L; None for all.
        over: "sup" for the supremum over the pairs, as in definition 3, or "mean".
        progress: Whether to show a progress bar on stderr.

    Returns:
        Both losses at these layers.

    Raises:
        ValueError: If an argument is out of range, or variances leave the range of a float.
        TypeError: If the network or the pairs have another type.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> loss = sp.information_loss(sp.Network("relu"), depth=100, layers=[10, 50])
        >>> print(loss.forward.round(3), loss.backward.round(3))
        [0.166 0.013] [0.015 0.2  ]
    """
    depth = require_depth(depth)
    wanted = layers_within(depth, layers)
    losses = _Losses(network, pairs, np.union1d(wanted, last_layers([depth])), over, progress)
    chosen = np.isin(losses.layers, wanted)
    return InformationLoss(depth, wanted, losses.forward()[chosen], losses.backward(depth)[chosen])


def equilibrium(
    network: Network,
    depths: Sequence[int] | NDArray[np.int64] | int,
    pairs: InputPairs | None = None,
    over: Over = "sup",
    progress: bool = False,
) -> Array:
    """Finds the layer l*(L) at which the losses of forward and backward information are equal (section 3.3).

    The equilibrium hypothesis of the paper is about this layer. Corollary 1 has l* ~ L^(3/5) for ReLU; `asymptotics`
    has the constant, and other activations.

    Args:
        network: The network; the paper has `Network("relu")`.
        depths: One depth L or several.
        pairs: Pairs of inputs; None for the set E_0.1 of equation 10, which is `InputPairs.apart(0.1)`.
        over: "sup" for the supremum over the pairs, as in definition 3, or "mean".
        progress: Whether to show a progress bar on stderr.

    Returns:
        One number for each depth, in their order. It lies between whole layers, by log-linear interpolation. It is nan
        for a network whose losses do not cross, such as a linear or a very shallow one.

    Raises:
        ValueError: If an argument is out of range, or variances leave the range of a float.
        TypeError: If the network or the pairs have another type.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> print(sp.equilibrium(sp.Network("relu"), [100, 1000, 10000]).round(1))
        [ 23.4 119.5 517.9]
    """
    numbers = np.atleast_1d(np.asarray(depths))
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"depths: expected one or several, got shape {list(numbers.shape)}")
    wanted = [require_depth(depth) for depth in numbers.tolist()]
    ends = last_layers(wanted)
    brackets = {depth: (1, depth) for depth in wanted}
    found: dict[int, float] = {}
    while brackets:
        tried = [_between(low, high) for low, high in brackets.values()]
        losses = _Losses(network, pairs, np.unique(np.concatenate([ends, *tried])), over, progress)
        forward = losses.forward()
        for depth, (low, high) in list(brackets.items()):
            backward = losses.backward(depth)
            inside = np.flatnonzero((losses.layers >= low) & (losses.layers <= high))
            with np.errstate(divide="ignore", invalid="ignore"):
                excess = np.log(forward[inside]) - np.log(backward[inside])
            later = np.flatnonzero(excess <= 0)
            if len(later) == 0 or later[0] == 0:
                found[depth] = math.nan
                del brackets[depth]
                continue
            first, second = (int(losses.layers[inside[i]]) for i in (later[0] - 1, later[0]))
            brackets[depth] = (first, second)
            if second == first + 1:
                above, below = excess[later[0] - 1], -excess[later[0]]
                share = above / (above + below) if math.isfinite(above) else 1.0
                found[depth] = math.exp((1 - share) * math.log(first) + share * math.log(second))
                del brackets[depth]
    return np.array([found[depth] for depth in wanted])


@dataclass(frozen=True)
class Asymptotics:
    """The powers of depth by which information falls on the edge of chaos.

    Attributes:
        forward_exponent: The exponent in forward loss ~ constant l^exponent (theorem 1).
        forward_constant: The constant in it.
        backward_exponent: The exponent in backward information ~ (L / l)^exponent for l << L (theorem 2, case 2).
        equilibrium_exponent: The exponent in l* ~ constant L^exponent (corollary 1).
        equilibrium_constant: The constant in it.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> sp.asymptotics(sp.Network("relu")).equilibrium_exponent
        0.6
    """

    forward_exponent: float
    forward_constant: float
    backward_exponent: float
    equilibrium_exponent: float
    equilibrium_constant: float


def asymptotics(network: Network) -> Asymptotics:
    """Computes exponents and constants of theorems 1 and 2 and corollary 1, for any activation on the edge of chaos.

    ReLU and leaky ReLU without biases, also in residual networks, have a kink: gamma' = gamma - (2 sqrt 2 kappa / 3 pi)
    gamma^(3/2). Then the losses are 9 pi^2 / (2 kappa^2 l^2) and (l / L)^3, so that
    l* = (9 pi^2 / 2 kappa^2)^(1/5) L^(3/5). A smooth activation with variances at q* > 0 has
    gamma' = gamma - beta gamma^2. Then the losses are 1 / (beta l) and (l / L)^2, so that l* = beta^(-1/3) L^(2/3).

    Args:
        network: The network.

    Returns:
        The exponents and constants.

    Raises:
        ValueError: If the network loses information at another rate: exponentially, or not at all.
        TypeError: If `network` is not a `Network`.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> relu = sp.asymptotics(sp.Network("relu"))
        >>> relu.forward_exponent, relu.backward_exponent, round(relu.equilibrium_constant, 3)
        (-2.0, -3.0, 2.136)
        >>> tanh = sp.asymptotics(sp.Network("tanh", bias_variance=0.05))
        >>> round(tanh.equilibrium_exponent, 3)
        0.667
    """
    require_network(network)
    homogeneous = network.homogeneous_map
    if homogeneous and homogeneous.kappa:
        return _balanced(-2.0, 4.5 * (math.pi / homogeneous.kappa) ** 2, -3.0)
    if homogeneous is None and math.isinf(network.depth_scales().correlation):
        q = np.full((), network.variance_fixed_point())
        # The slope is 1 - 2 beta gamma + O(gamma^2), and two values of gamma remove the second order.
        first, second = (
            (1 - float(network.layer(State((q, q), np.full((), gamma))).slope)) / (2 * gamma) for gamma in (1e-4, 2e-4)
        )
        return _balanced(-1.0, 1 / (2 * first - second), -2.0)
    raise ValueError(
        f"network: expected one on the edge of chaos that loses information like a power of depth, got {network}"
    )


def _balanced(forward: float, constant: float, backward: float) -> Asymptotics:
    """Adds the equilibrium, which is the l with constant l^forward = (L / l)^backward."""
    total = -forward - backward
    return Asymptotics(forward, constant, backward, -backward / total, constant ** (1 / total))


class _Losses:
    """Both losses over a set of pairs, at given layers of networks of several depths."""

    def __init__(
        self, network: Network, pairs: InputPairs | None, layers: NDArray[np.int64], over: Over, progress: bool
    ) -> None:
        if over not in ("sup", "mean"):
            raise ValueError(f'over: expected "sup" or "mean", got {over!r}')
        pairs = InputPairs.apart(0.1) if pairs is None else pairs
        self.over = over
        self.layers = layers
        self._pairs = propagate(network, pairs, layers, progress)
        first, second = pairs.scales
        self._own = [_own(network, first, layers, progress)]
        self._own.append(self._own[0] if second is first else _own(network, second, layers, progress))

    def forward(self) -> Array:
        """Computes the forward loss over the pairs, [layers]."""
        return self._reduced(self._pairs.forward_gamma)

    def backward(self, depth: int) -> Array:
        """Computes the backward loss over the pairs, [layers <= depth]."""
        sign, log = self._pairs.log_backward_information(depth)
        own = [one.log_backward_information(depth)[1] for one in self._own]
        return self._reduced(sign * np.exp(log - (own[0] + own[1]) / 2))

    def _reduced(self, values: Array) -> Array:
        axes = tuple(range(1, values.ndim))
        reduced: Array = (np.max if self.over == "sup" else np.mean)(np.abs(values), axis=axes)
        return reduced


def _own(network: Network, scale: Array, layers: NDArray[np.int64], progress: bool) -> Propagation:
    """Carries every input, paired with itself, through the network."""
    return propagate(network, InputPairs(np.zeros_like(scale), (scale, scale)), layers, progress)


def _between(low: int, high: int) -> NDArray[np.int64]:
    """Lists at most POINTS log-spaced layers from low to high, both included."""
    return np.unique(np.round(np.geomspace(low, high, POINTS)).astype(np.int64))
