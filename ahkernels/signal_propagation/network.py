"""Random fully connected networks of infinite width, and how their layers map variances and correlations of inputs.

    z_1 = W_1 x + b_1,  z_l = W_l phi(z_{l-1}) + b_l        W_l ~ N(0, sigma_w^2 / fan_in), b_l ~ N(0, sigma_b^2)

Equation 8 of the paper has ReLU, sigma_w^2 = 2 and sigma_b^2 = 0. With a branch scale s, the layers between the first
and the last one are residual: z_l = z_{l-1} + s (W_l phi(z_{l-1}) + b_l).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from ahkernels.signal_propagation.activations import Activation, LeakyReLU, activation_of
from ahkernels.signal_propagation.arc_cosine import ArcCosineMap, angle
from ahkernels.signal_propagation.inputs import real, require, require_number

Array = NDArray[np.float64]

VANISHING, SMALL = 1e-20, 1e-4  # variances that stand for the limit of 0, and that test whether it is stable
LEAST_VARIANCE, LARGEST_VARIANCE = 1e-12, 1e3  # fixed points are looked for between these variances
SCAN = 400  # variances that are tried between them, to bracket a fixed point


class State(NamedTuple):
    """The pre-activations of a layer, for pairs of inputs.

    Attributes:
        variances: q(x, x) and q(x', x'), both divided by e^log_scale.
        gamma: 1 - c with the correlation c.
        log_scale: A logarithm that all variances share. In networks with (leaky) ReLU and without biases, all variances
            grow by the same factor. They stay as they are and this number grows, also beyond the range of a float.
    """

    variances: tuple[Array, Array]
    gamma: Array
    log_scale: float = 0.0


class Layer(NamedTuple):
    """One layer's input, pre-activations and backward slope, for pairs of inputs of the network.

    Attributes:
        moments: E[phi(z(x))^2] and E[phi(z(x'))^2] of the layer's input, both divided by e^log_scale. For the first
            layer, |x|^2 / d and |x'|^2 / d.
        log_scale: The logarithm that the moments share.
        gamma: 1 - E[phi(z(x)) phi(z(x'))] / sqrt(the product of the moments), which is the loss of forward information.
        state: The pre-activations of the layer.
        slope: The factor by which the covariance of gradients changes, from this layer's pre-activations back to the
            pre-activations before it.
        readout: The same factor if this were the last layer, which no residual connection bridges.
    """

    moments: tuple[Array, Array]
    log_scale: float
    gamma: Array
    state: State
    slope: Array
    readout: Array


class DepthScales(NamedTuple):
    """Numbers of layers after which a deviation from a fixed point has fallen by a factor e.

    They are inf where the deviation falls like a power of depth.

    Attributes:
        variance: The depth scale of variances, near q*.
        correlation: The depth scale of correlations, near c*.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> sp.Network("relu").depth_scales()
        DepthScales(variance=inf, correlation=inf)
    """

    variance: float
    correlation: float


@dataclass(frozen=True)
class Network:
    """A random fully connected network of infinite width.

    Attributes:
        activation: A name ("relu", "leaky_relu", "linear", "erf", "tanh", "gelu") or an `Activation`.
        weight_variance: sigma_w^2, the variance of a weight times the fan-in; None for the edge of chaos.
        bias_variance: sigma_b^2, the variance of a bias.
        branch_scale: The scale s of residual branches; None for a network without residual connections.

    Raises:
        ValueError: If a value is out of range or not finite, the activation is unknown, or there is no edge of chaos.
        TypeError: If the activation is neither a name nor an `Activation`.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> network = sp.Network("relu")  # on the edge of chaos, as in the paper
        >>> network.weight_variance
        2.0
        >>> print(network.correlation_map([-1.0, 0.0, 1.0]).round(3))
        [0.    0.318 1.   ]
        >>> tanh = sp.Network("tanh", weight_variance=1.2, bias_variance=0.05)
        >>> print(f"q* = {tanh.variance_fixed_point():.3f}, c* = {tanh.correlation_fixed_point():.3f}")
        q* = 0.270, c* = 1.000
    """

    activation: str | Activation = "relu"
    weight_variance: float | None = None
    bias_variance: float = 0.0
    branch_scale: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation", activation_of(self.activation))
        require_number("bias_variance", self.bias_variance, lambda value: value >= 0, "of at least 0")
        if self.weight_variance is None:
            object.__setattr__(self, "weight_variance", edge_of_chaos(self.activation, self.bias_variance))
        assert self.weight_variance is not None
        require_number("weight_variance", self.weight_variance, lambda value: value > 0, "above 0")
        if self.branch_scale is not None:
            require_number("branch_scale", self.branch_scale, lambda value: value > 0, "above 0, or None")

    # ---- one layer

    def first(self, scales: tuple[Array, Array], gamma: Array) -> Layer:
        """Computes layer 1 from inputs with squared lengths d * scales and correlation 1 - gamma."""
        state = self._plain(scales, gamma)
        ones = np.ones(np.shape(gamma))
        return Layer(scales, 0.0, gamma, state, ones, ones)

    def layer(self, before: State) -> Layer:
        """Computes a layer l > 1 from the pre-activations before it."""
        pair = self._activation.pair(before.variances, before.gamma)
        readout = self._weight * pair.derivative
        parts, slope = self._parts(pair.moments, pair.gamma), readout
        if self.branch_scale is not None:
            square = self.branch_scale**2
            parts = [(before.variances, before.gamma), *(((square * a, square * b), lost) for (a, b), lost in parts)]
            slope = 1 + square * readout
        state = _sum(parts)
        if self._growth_of_layer is not None:
            state = State(before.variances, state.gamma, before.log_scale + math.log(self._growth_of_layer))
        return Layer(pair.moments, before.log_scale, pair.gamma, state, slope, readout)

    def many_layers(self, before: State, count: int) -> tuple[State, Array] | None:
        """Computes `count` layers in one step.

        Returns:
            The pre-activations after these layers, and the logarithm of the product of their slopes. None if no such
            step is known: it needs (leaky) ReLU without biases, and inputs that are nearly alike in every pair.
        """
        fast, growth = self.homogeneous_map, self._growth_of_layer
        if fast is None or growth is None or float(angle(before.gamma).max()) > fast.reach:
            return None
        gamma = fast.advance(before.gamma, count)
        grown = count * math.log(growth)
        return State(before.variances, gamma, before.log_scale + grown), fast.log_product(before.gamma, gamma) + grown

    def _plain(self, moments: tuple[Array, Array], gamma: Array) -> State:
        return _sum(self._parts(moments, gamma))

    def _parts(self, moments: tuple[Array, Array], gamma: Array) -> list[tuple[tuple[Array, Array], Array]]:
        """Lists the independent parts of W phi + b, each with its variances and its gamma."""
        parts = [((self._weight * moments[0], self._weight * moments[1]), gamma)]
        if self.bias_variance:
            bias = np.full((), self.bias_variance)
            parts.append(((bias, bias), np.zeros(())))
        return parts

    @property
    def _activation(self) -> Activation:
        assert isinstance(self.activation, Activation)
        return self.activation

    @property
    def _weight(self) -> float:
        assert self.weight_variance is not None
        return float(self.weight_variance)

    # ---- maps

    def variance_map(self, variance: Any) -> Array:
        """Maps the variance of z_{l-1} to the variance of z_l, elementwise.

        Args:
            variance: Variances above 0, any shape.

        Returns:
            Variances in the same shape.

        Raises:
            ValueError: If a variance is not above 0.
        """
        q = real("variance", variance)
        require("variance", q, q > 0, "numbers above 0")
        state = self.layer(State((q, q), np.zeros_like(q))).state
        return state.variances[0] * math.exp(state.log_scale)

    def correlation_map(self, correlation: Any, variance: float | None = None) -> Array:
        """Computes g(c): maps the correlation of z_{l-1}(x) and z_{l-1}(x') to that of z_l(x) and z_l(x'), elementwise.

        For ReLU this is equation 3 of the paper's appendix A.

        Args:
            correlation: Correlations in [-1, 1], any shape.
            variance: The variance of z_{l-1} for both inputs; None for the fixed point q*. It does not matter for
                (leaky) ReLU without biases.

        Returns:
            Correlations in the same shape.

        Raises:
            ValueError: If a correlation is out of range, or there is no fixed point and no variance was given.
        """
        return 1 - self._at(correlation, variance)[1].state.gamma

    def correlation_slope(self, correlation: Any, variance: float | None = None) -> Array:
        """Computes g'(c), the derivative of the correlation map, elementwise.

        Args:
            correlation: Correlations in [-1, 1], any shape.
            variance: The variance for both inputs; None for the fixed point q*.

        Returns:
            Slopes in the same shape.

        Raises:
            ValueError: If a correlation is out of range, or there is no fixed point and no variance was given.
        """
        before, layer = self._at(correlation, variance)
        return layer.slope * before.variances[0] / (layer.state.variances[0] * math.exp(layer.state.log_scale))

    def _at(self, correlation: Any, variance: float | None) -> tuple[State, Layer]:
        c = real("correlation", correlation)
        require("correlation", c, np.abs(c) <= 1, "numbers in [-1, 1]")
        q = real("variance", self._some_variance() if variance is None else variance)
        require("variance", q, q > 0, "numbers above 0")
        state = State((q, q), 1 - c)
        return state, self.layer(state)

    # ---- fixed points

    @cached_property
    def homogeneous_map(self) -> ArcCosineMap | None:
        """The map of gamma for (leaky) ReLU without biases, where it does not depend on variances; otherwise None."""
        growth = self._growth_of_layer
        if growth is None:
            return None
        assert isinstance(self.activation, LeakyReLU)
        kappa = self.activation.map.kappa
        return ArcCosineMap(kappa if self.branch_scale is None else kappa * (1 - 1 / growth))

    @cached_property
    def _growth_of_layer(self) -> float | None:
        """The factor by which a layer l > 1 of (leaky) ReLU without biases changes variances; otherwise None."""
        if not isinstance(self.activation, LeakyReLU) or self.bias_variance:
            return None
        growth = self._weight * self.activation.gain
        return growth if self.branch_scale is None else 1 + self.branch_scale**2 * growth

    def _some_variance(self) -> float:
        return 1.0 if self.homogeneous_map else self.variance_fixed_point()

    def variance_fixed_point(self) -> float:
        """Finds the stable fixed point q* > 0 of the variance map.

        Raises:
            ValueError: If there is none, since variances vanish, grow without bound, or stay what they are.
        """
        if not self.homogeneous_map and self.branch_scale is None:
            tried = np.geomspace(LEAST_VARIANCE, LARGEST_VARIANCE, SCAN)
            growth = self._growth(tried)
            falls = np.flatnonzero((growth[:-1] > 0) & (growth[1:] <= 0))
            if len(falls):
                low, high = np.log(tried[falls[0] : falls[0] + 2])
                return math.exp(
                    scipy.optimize.brentq(lambda q: float(self._growth(np.exp(q))), low, high, xtol=1e-15, rtol=1e-15)
                )
        raise ValueError(
            "variance: expected a network whose variances come to a fixed point above 0, got one whose variances "
            f"do not ({self}); give the variance"
        )

    def _growth(self, variance: Array) -> Array:
        return self._weight * self._activation.moment(variance) + self.bias_variance - variance

    def correlation_fixed_point(self) -> float:
        """Finds the stable fixed point c* of the correlation map in [0, 1].

        It is 1 in the ordered phase and on the edge of chaos.

        Raises:
            ValueError: If there is no fixed point of the variance.
        """
        q = np.full((), self._some_variance())

        def growth(gamma: float) -> float:
            return float(self.layer(State((q, q), np.full((), gamma))).state.gamma) - gamma

        if growth(1e-9) <= 0:
            return 1.0
        return 1 - scipy.optimize.brentq(growth, 1e-9, 1.0) if growth(1.0) < 0 else 0.0

    def depth_scales(self) -> DepthScales:
        """Computes how many layers a deviation from a fixed point takes to fall by a factor e.

        A depth scale is -1 / log(slope), with the slope of the variance map at q* or of the correlation map at c*
        (Schoenholz et al., 2017). It is inf where the slope is 1, as on the edge of chaos.

        Returns:
            Both depth scales, in layers.

        Raises:
            ValueError: If there is no fixed point of the variance.
        """
        q = np.full((), self._some_variance())
        variance_slope = self._weight * float(self._activation.moment_slope(q))
        if self.branch_scale is not None:
            variance_slope = 1 + self.branch_scale**2 * variance_slope
        correlation_slope = float(self.correlation_slope(self.correlation_fixed_point(), float(q)))
        return DepthScales(_depth_scale(variance_slope), _depth_scale(correlation_slope))


def edge_of_chaos(activation: str | Activation, bias_variance: float = 0.0) -> float:
    """Finds the weight variance sigma_w^2 at which gradients neither grow nor vanish.

    There sigma_w^2 E[phi'(u)^2] = 1, with the variance q* = sigma_w^2 E[phi(u)^2] + sigma_b^2 of u. For ReLU without
    biases it is 2 at any variance.

    Args:
        activation: The name of an activation, or an `Activation`; see `Network`.
        bias_variance: sigma_b^2.

    Returns:
        The weight variance times the fan-in.

    Raises:
        ValueError: If the activation is unknown or has no edge of chaos with this bias variance.
        TypeError: If the activation is neither a name nor an `Activation`.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> sp.edge_of_chaos("relu")
        2.0
        >>> round(sp.edge_of_chaos("tanh", bias_variance=0.05), 4)
        1.761
    """
    phi = activation_of(activation)
    require_number("bias_variance", bias_variance, lambda value: value >= 0, "of at least 0")

    def weight(q: float) -> float:
        return 1 / float(phi.derivative_moment(np.full((), q)))

    def short(q: float) -> float:
        return q - weight(q) * float(phi.moment(np.full((), q))) - bias_variance

    if not bias_variance:  # small variances may be the stable limit; to (leaky) ReLU all variances are alike
        critical = weight(VANISHING)
        if critical * float(phi.moment(np.full((), SMALL))) <= SMALL * (1 + 1e-12):
            return critical
    elif not isinstance(phi, LeakyReLU):  # with biases, variances of (leaky) ReLU grow on the edge of chaos
        for low, high in pairwise(np.geomspace(LEAST_VARIANCE, LARGEST_VARIANCE, SCAN)):
            try:
                bracketed = short(low) < 0 <= short(high)
            except ValueError:  # a variance too large for the activation's series
                break
            if bracketed:
                q = math.exp(
                    scipy.optimize.brentq(lambda log: short(math.exp(log)), math.log(low), math.log(high), xtol=1e-14)
                )
                if weight(q) * float(phi.moment_slope(np.full((), q))) < 1:
                    return weight(q)
    raise ValueError(
        f"bias_variance: expected one at which {phi} has an edge of chaos with stable variances, got {bias_variance}; "
        "give weight_variance"
    )


def _sum(parts: list[tuple[tuple[Array, Array], Array]]) -> State:
    """Adds independent Gaussians: variances add up, and gamma is computed without taking a difference from 1."""
    first = sum((part[0][0] for part in parts), np.zeros(()))
    second = sum((part[0][1] for part in parts), np.zeros(()))
    gamma = np.zeros(())
    for (a, b), lost in parts:
        # For unit vectors u and v, 1 - sum_i u_i v_i (1 - lost_i) = |u - v|^2 / 2 + sum_i u_i v_i lost_i.
        u, v = np.sqrt(a / first), np.sqrt(b / second)
        gamma = gamma + (u - v) ** 2 / 2 + u * v * lost
    return State((first, second), gamma)


def _depth_scale(rate: float) -> float:
    if abs(rate - 1) < 1e-9:
        return math.inf
    return -1 / math.log(abs(rate)) if rate else 0.0


def require_network(network: object) -> None:
    """Raises TypeError, naming `network`, unless it is a `Network`."""
    if not isinstance(network, Network):
        raise TypeError(f"network: expected a Network, such as Network({network!r}), got {type(network).__name__}")
