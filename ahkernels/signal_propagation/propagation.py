"""Propagation of pairs of inputs to any depth: their correlations, and forward and backward information."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ahkernels.signal_propagation.inputs import InputPairs
from ahkernels.signal_propagation.network import Layer, Network, State, require_network

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Propagation:
    """Pairs of inputs at k layers of a network of infinite width.

    The pairs have any shape, which is written [...] here. Backward information also depends on the depth L of the
    network, so that its methods take L as an argument.

    Attributes:
        network: The network that the pairs went through.
        layers: Layer numbers [k], counted from 1, ascending.
        gamma: 1 - correlation of the pre-activations z_l, [k, ...].
        variances: The variances of z_l(x) and z_l(x'), both [k, ...] and divided by e^log_growth.
        log_growth: The logarithm [k] that the variances share. It is 0 except for (leaky) ReLU without biases, where
            all variances grow by the same factor, also beyond the range of a float.
        forward_gamma: 1 - correlation of the layer's inputs phi(z_{l-1}), which is the loss of forward information,
            [k, ...].
        moments: E[phi(z_{l-1})^2] for x and x', both [k, ...] and divided by e^log_input_growth. For layer 1,
            |x|^2 / d.
        log_input_growth: The logarithm [k] that the moments share.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> found = sp.propagate(sp.Network("relu"), sp.InputPairs.of_correlations([0.0, 0.9]), 10)
        >>> found.forward_information().shape
        (10, 2)
        >>> print(found.backward_information(10)[[0, 9]].round(3))  # layers 1 and 10
        [[0.041 0.315]
         [1.    1.   ]]
    """

    network: Network
    layers: NDArray[np.int64]
    gamma: Array
    variances: tuple[Array, Array]
    log_growth: Array
    forward_gamma: Array
    moments: tuple[Array, Array]
    log_input_growth: Array
    _signs: Array  # [k, ...], signs of the products of slopes from layers[j] to layers[j + 1]
    _logs: Array  # [k, ...], logarithms of the same products
    _readout: Array  # [k, ...], slope of layer layers[j] + 1 if it were the last layer

    def forward_information(self) -> Array:
        """Computes I^f_l = E[phi(z_{l-1}(x)) phi(z_{l-1}(x'))], [k, ...] (definition 2)."""
        scale = np.exp(self.log_input_growth).reshape(-1, *[1] * (self.forward_gamma.ndim - 1))
        return scale * np.sqrt(self.moments[0] * self.moments[1]) * (1 - self.forward_gamma)

    def backward_information(self, depth: int) -> Array:
        """Computes N I^b_l = E[<df/dz_l(x), df/dz_l(x')>] for one output f of a network of depth L.

        Definition 2 has the average over the N units of a layer, which vanishes as N grows, and this is their sum. It
        is the product of slopes over layers l + 1 ... L (equation 4 of appendix A), and 1 at the last layer.

        Args:
            depth: The depth L. Both L - 1 and L have to be among the layers, since the last layer has no residual
                connection.

        Returns:
            Numbers [layers <= depth, ...].

        Raises:
            ValueError: If L or, for L > 1, L - 1 is not among the layers.
        """
        sign, log = self.log_backward_information(depth)
        return sign * np.exp(log)

    def log_backward_information(self, depth: int) -> tuple[Array, Array]:
        """Computes sign and logarithm of `backward_information`, for products out of the range of a float.

        Args:
            depth: The depth L, as for `backward_information`.

        Returns:
            Signs and logarithms, both [layers <= depth, ...].

        Raises:
            ValueError: If L or, for L > 1, L - 1 is not among the layers.
        """
        known = self.layers.tolist()
        if depth not in known or (depth > 1 and depth - 1 not in known):
            raise ValueError(f"depth: expected L with L - 1 and L among the layers, got {depth}")
        end = known.index(depth)
        sign, log = self._signs[: end + 1].copy(), self._logs[: end + 1].copy()
        sign[end], log[end] = 1, 0
        if depth > 1:
            sign[end - 1] = np.sign(self._readout[end - 1])
            log[end - 1] = _log(self._readout[end - 1])
        total: Array = np.cumsum(log[::-1], axis=0, dtype=np.float64)[::-1]
        signs: Array = np.cumprod(sign[::-1], axis=0, dtype=np.float64)[::-1]
        return signs, total


def propagate(
    network: Network,
    pairs: InputPairs,
    layers: Sequence[int] | NDArray[np.int64] | int,
    progress: bool = False,
) -> Propagation:
    """Carries pairs of inputs through a network of infinite width.

    It takes one layer at a time. With (leaky) ReLU and without biases, it takes all layers between two recorded ones in
    one step once the inputs are nearly alike, which they are after a few dozen layers; then the cost does not grow with
    depth (see `arc_cosine`).

    Args:
        network: The network.
        pairs: The inputs.
        layers: The layers to record, each at least 1. A single number L stands for all layers 1 ... L.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The pairs at these layers. gamma and the products of slopes have relative accuracy, also as they go to 0.

    Raises:
        ValueError: If a layer is below 1 or none is given, or variances leave the range of a float.
        TypeError: If the network or the pairs have another type.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> found = sp.propagate(sp.Network("relu"), sp.InputPairs.of_correlations(0.0), [1, 10, 1000])
        >>> print([f"{gamma:.1e}" for gamma in found.gamma])
        ['1.0e+00', '1.5e-01', '4.3e-05']
    """
    require_network(network)
    if not isinstance(pairs, InputPairs):
        raise TypeError(f"pairs: expected InputPairs, got {type(pairs).__name__}")
    wanted = layer_numbers(layers)
    with np.errstate(over="ignore", invalid="ignore"):  # these end in an error that names the layer
        return _propagated(network, pairs, wanted, progress)


def _propagated(network: Network, pairs: InputPairs, wanted: NDArray[np.int64], progress: bool) -> Propagation:
    found = _empty(network, wanted, pairs)
    layer, index = network.first(pairs.scales, pairs.gamma), 1
    _require_variances(layer.state, index)
    following = network.layer(layer.state)
    with tqdm(total=int(wanted[-1]), desc="layers", unit="layer", disable=not progress, leave=False) as bar:
        for j, target in enumerate(wanted.tolist()):
            sign, log = np.ones(pairs.gamma.shape), np.zeros(pairs.gamma.shape)
            while index < target:
                state = layer.state
                if target - 1 > index and (far := network.many_layers(state, target - 1 - index)):
                    state, log_far = far
                    log, index = log + log_far, target - 1
                    following = network.layer(state)
                sign, log = sign * np.sign(following.slope), log + _log(following.slope)
                layer, index = following, index + 1
                _require_variances(layer.state, index)
                following = network.layer(layer.state)
            bar.update(index - bar.n)
            if j:
                found._signs[j - 1], found._logs[j - 1] = sign, log
            _record(found, j, layer, following.readout)
    return found


def _empty(network: Network, layers: NDArray[np.int64], pairs: InputPairs) -> Propagation:
    def arrays(shape: tuple[int, ...]) -> Array:
        return np.empty((len(layers), *shape))

    first, second = (scale.shape for scale in pairs.scales)
    shape = pairs.gamma.shape
    return Propagation(
        network,
        layers,
        gamma=arrays(shape),
        variances=(arrays(first), arrays(second)),
        log_growth=arrays(()),
        forward_gamma=arrays(shape),
        moments=(arrays(first), arrays(second)),
        log_input_growth=arrays(()),
        _signs=np.ones((len(layers), *shape)),
        _logs=np.zeros((len(layers), *shape)),
        _readout=arrays(shape),
    )


def _record(found: Propagation, j: int, layer: Layer, readout: Array) -> None:
    found.gamma[j], found.forward_gamma[j], found._readout[j] = layer.state.gamma, layer.gamma, readout
    found.log_growth[j], found.log_input_growth[j] = layer.state.log_scale, layer.log_scale
    for k in range(2):
        found.variances[k][j], found.moments[k][j] = layer.state.variances[k], layer.moments[k]


def _log(slope: Array) -> Array:
    with np.errstate(divide="ignore"):  # a slope is 0 where opposite inputs of a ReLU share no active unit
        log: Array = np.log(np.abs(slope))
    return log


def layer_numbers(layers: Sequence[int] | NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Sorts distinct layer numbers in ascending order; a single number stands for all layers up to it.

    Raises:
        ValueError: If a layer is below 1 or not a whole number, or there is none.
    """
    array = np.asarray(layers)
    if array.dtype.kind not in "iu":
        raise ValueError(f"layers: expected whole numbers, got {layers!r}")
    if array.size == 0 or array.min() < 1:
        raise ValueError(f"layers: expected numbers of at least 1, got {array.min() if array.size else 'none'}")
    return np.arange(1, int(array) + 1) if array.ndim == 0 else np.unique(array.astype(np.int64))


def require_depth(depth: Any) -> int:
    """Returns the depth as an int; raises ValueError, naming it, unless it is a whole number of at least 1."""
    if isinstance(depth, bool) or not isinstance(depth, int | np.integer) or depth < 1:
        raise ValueError(f"depth: expected a whole number of at least 1, got {depth!r}")
    return int(depth)


def layers_within(depth: int, layers: Sequence[int] | NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Sorts distinct layers of a network of this depth in ascending order; None stands for all.

    Raises:
        ValueError: If a layer is below 1 or beyond the depth, or there is none.
    """
    wanted = layer_numbers(depth if layers is None else layers)
    if wanted[-1] > depth:
        raise ValueError(f"layers: expected numbers from 1 to {depth}, the depth, got {wanted[-1]}")
    return wanted


def last_layers(depths: Iterable[int]) -> NDArray[np.int64]:
    """Lists the layers that `Propagation.backward_information` needs for networks of these depths."""
    return np.unique([layer for depth in depths for layer in (max(1, depth - 1), depth)])


def _require_variances(state: State, index: int) -> None:
    for variance in state.variances:
        if not (np.isfinite(variance).all() and (variance > 0).all()):
            raise ValueError(
                f"network: expected variances that stay within the range of a float, got {variance.flat[0]} at layer "
                f"{index}; choose weight_variance closer to the edge of chaos"
            )
