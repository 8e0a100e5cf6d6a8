"""A random fully connected network of infinite width: what a layer does to variances and correlations of its inputs.

    z_1 = W_1 x + b_1,  z_l = W_l phi(z_{l-1}) + b_l        W_l ~ N(0, sigma_w^2 / fan_in), b_l ~ N(0, sigma_b^2)

(the paper's equation 8 has ReLU, sigma_w^2 = 2, sigma_b^2 = 0). With a branch scale s it is residual between its first
and its last layer: z_l = z_{l-1} + s (W_l phi(z_{l-1}) + b_l).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from ahkernels.signal_propagation.activations import Activation, LeakyReLU, activation_of
from ahkernels.signal_propagation.arc_cosine import ArcCosineMap, angle
from ahkernels.signal_propagation.inputs import real, require, require_number

Array = NDArray[np.float64]

VANISHING, SMALL = 1e-20, 1e-4  # variances for the limit of 0, and to see whether it is stable
LEAST_VARIANCE, LARGEST_VARIANCE = 1e-12, 1e3  # between which fixed points are looked for
SCAN = 400  # variances tried there before one is bracketed


class State(NamedTuple):
    """Pre-activations of a layer, for pairs of inputs.

    Attributes:
        variances: q(x, x) and q(x', x').
        gamma: 1 - c, c their correlation.
        log_scale: the variances are times e to this. Where all of them grow alike, which is (leaky) ReLU without
            biases, they stay and this grows: to depths at which no float would hold them.
    """

    variances: tuple[Array, Array]
    gamma: Array
    log_scale: float = 0.0


class Layer(NamedTuple):
    """What a layer does with the pairs before it.

    Attributes:
        moments: E[phi(z(x))^2] and E[phi(z(x'))^2], of the layer's input; of the network's input |x|^2 / d. Times
            e^log_scale.
        log_scale: of the moments.
        gamma: 1 - E[phi(z(x)) phi(z(x'))] / sqrt of the moments' product: the loss of forward information.
        state: of its pre-activations.
        slope: factor of the gradients' covariance from this layer's pre-activations to those before it.
        readout: the same, were this the last layer, which no residual connection bridges.
    """

    moments: tuple[Array, Array]
    log_scale: float
    gamma: Array
    state: State
    slope: Array
    readout: Array


class DepthScales(NamedTuple):
    """Layers in which a deviation from a fixed point falls by a factor e; inf where it falls like a power of depth.

    Attributes:
        variance: of a variance from q*.
        correlation: of a correlation from c*.
    """

    variance: float
    correlation: float


@dataclass(frozen=True)
class Network:
    """A random fully connected network of infinite width.

    Attributes:
        activation: a name ("relu", "leaky_relu", "linear", "erf", "tanh", "gelu") or an `Activation`.
        weight_variance: sigma_w^2, variance of a weight times its fan-in; None: that of the edge of chaos.
        bias_variance: sigma_b^2, variance of a bias.
        branch_scale: s of a residual network; None: no residual connections.

    Raises:
        ValueError: if a value is out of range or not finite, the activation unknown, or there is no edge of chaos.
        TypeError: if the activation is none.
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
        """Layer 1, from inputs with squared lengths d * scales and correlation 1 - gamma."""
        state = self._plain(scales, gamma)
        ones = np.ones(np.shape(gamma))
        return Layer(scales, 0.0, gamma, state, ones, ones)

    def layer(self, before: State) -> Layer:
        """A layer l > 1 from the pre-activations before it."""
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
        """Pre-activations `count` layers on, and the log of the product of slopes on the way there, in one step.

        None where no such step is known: it is for (leaky) ReLU without biases, and pairs that are nearly alike.
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
        """Independent parts of W phi + b, as variances and gamma."""
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
        """Variance of z_l from that of z_{l-1}, elementwise.

        Raises:
            ValueError: if a variance is not above 0.
        """
        q = real("variance", variance)
        require("variance", q, q > 0, "numbers above 0")
        state = self.layer(State((q, q), np.zeros_like(q))).state
        return state.variances[0] * math.exp(state.log_scale)

    def correlation_map(self, correlation: Any, variance: float | None = None) -> Array:
        """g(c): correlation of z_l(x), z_l(x') from that of z_{l-1}, elementwise (equation 3 of appendix A for ReLU).

        Args:
            correlation: in [-1, 1], any shape.
            variance: q of both inputs; None: the fixed point's. Without biases (leaky) ReLU has the same map at all.

        Raises:
            ValueError: if a correlation is out of range, or there is no fixed point and no variance was given.
        """
        return 1 - self._at(correlation, variance)[1].state.gamma

    def correlation_slope(self, correlation: Any, variance: float | None = None) -> Array:
        """g'(c): derivative of the correlation map, elementwise; args and errors are those of `correlation_map`."""
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
        """The map of gamma where it does not depend on variances: (leaky) ReLU without biases; otherwise None."""
        growth = self._growth_of_layer
        if growth is None:
            return None
        assert isinstance(self.activation, LeakyReLU)
        kappa = self.activation.map.kappa
        return ArcCosineMap(kappa if self.branch_scale is None else kappa * (1 - 1 / growth))

    @cached_property
    def _growth_of_layer(self) -> float | None:
        """Factor of all variances in a layer l > 1 of (leaky) ReLU without biases; otherwise None."""
        if not isinstance(self.activation, LeakyReLU) or self.bias_variance:
            return None
        growth = self._weight * self.activation.gain
        return growth if self.branch_scale is None else 1 + self.branch_scale**2 * growth

    def _some_variance(self) -> float:
        return 1.0 if self.homogeneous_map else self.variance_fixed_point()

    def variance_fixed_point(self) -> float:
        """The stable fixed point q* > 0 of the variance map.

        Raises:
            ValueError: if there is none: variances vanish, or grow without bound, or keep what they are.
        """
        if not self.homogeneous_map and self.branch_scale is None:
            tried = np.geomspace(LEAST_VARIANCE, LARGEST_VARIANCE, SCAN)
            growth = self._growth(tried)
            falls = np.flatnonzero((growth[:-1] > 0) & (growth[1:] <= 0))
            if len(falls):
                low, high = np.log(tried[falls[0] : falls[0] + 2])
                return math.exp(brentq(lambda q: float(self._growth(np.exp(q))), low, high, xtol=1e-15, rtol=1e-15))
        raise ValueError(
            "variance: expected a network whose variances come to a fixed point above 0, got one whose do not "
            f"({self}); give the variance"
        )

    def _growth(self, variance: Array) -> Array:
        return self._weight * self._activation.moment(variance) + self.bias_variance - variance

    def correlation_fixed_point(self) -> float:
        """The stable fixed point c* of the correlation map in [0, 1]: 1 in the ordered phase and at the edge of chaos.

        Raises:
            ValueError: if there is no fixed point of the variance.
        """
        q = np.full((), self._some_variance())

        def growth(gamma: float) -> float:
            return float(self.layer(State((q, q), np.full((), gamma))).state.gamma) - gamma

        if growth(1e-9) <= 0:
            return 1.0
        return 1 - brentq(growth, 1e-9, 1.0) if growth(1.0) < 0 else 0.0

    def depth_scales(self) -> DepthScales:
        """How many layers a deviation from a fixed point takes to fall by a factor e.

        -1 / log of the derivative of the variance map at q* and of the correlation map at c* (Schoenholz et al.,
        2017); inf where that derivative is 1, as on the edge of chaos.

        Raises:
            ValueError: if there is no fixed point of the variance.
        """
        q = np.full((), self._some_variance())
        of_variance = self._weight * float(self._activation.moment_slope(q))
        if self.branch_scale is not None:
            of_variance = 1 + self.branch_scale**2 * of_variance
        of_correlation = float(self.correlation_slope(self.correlation_fixed_point(), float(q)))
        return DepthScales(_depth_scale(of_variance), _depth_scale(of_correlation))


def edge_of_chaos(activation: str | Activation, bias_variance: float = 0.0) -> float:
    """The weight variance sigma_w^2 at which gradients neither grow nor vanish: sigma_w^2 E[phi'(u)^2] = 1 at q*.

    2 for ReLU without biases; that of a variance q* with q* = sigma_w^2 E[phi(u)^2] + sigma_b^2 otherwise.

    Args:
        activation: as of a `Network`.
        bias_variance: sigma_b^2.

    Raises:
        ValueError: if the activation is unknown or has no edge of chaos with this bias variance.
        TypeError: if the activation is none.
    """
    phi = activation_of(activation)
    require_number("bias_variance", bias_variance, lambda value: value >= 0, "of at least 0")

    def weight(q: float) -> float:
        return 1 / float(phi.derivative_moment(np.full((), q)))

    def short(q: float) -> float:
        return q - weight(q) * float(phi.moment(np.full((), q))) - bias_variance

    if not bias_variance:  # where the limit of small variances is stable or, for (leaky) ReLU, all variances are alike
        critical = weight(VANISHING)
        if critical * float(phi.moment(np.full((), SMALL))) <= SMALL * (1 + 1e-12):
            return critical
    elif not isinstance(phi, LeakyReLU):  # whose variances grow at the edge of chaos, if there are biases
        for low, high in pairwise(np.geomspace(LEAST_VARIANCE, LARGEST_VARIANCE, SCAN)):
            try:
                bracketed = short(low) < 0 <= short(high)
            except ValueError:  # a variance too large for the activation's series
                break
            if bracketed:
                q = math.exp(brentq(lambda log: short(math.exp(log)), math.log(low), math.log(high), xtol=1e-14))
                if weight(q) * float(phi.moment_slope(np.full((), q))) < 1:
                    return weight(q)
    raise ValueError(
        f"bias_variance: expected one at which {phi} has an edge of chaos with stable variances, got {bias_variance}; "
        "give weight_variance"
    )


def _sum(parts: list[tuple[tuple[Array, Array], Array]]) -> State:
    """Sum of independent Gaussians: variances add up, and gamma comes out of the parts without a difference of ones."""
    first = sum((part[0][0] for part in parts), np.zeros(()))
    second = sum((part[0][1] for part in parts), np.zeros(()))
    gamma = np.zeros(())
    for (a, b), lost in parts:
        # Of unit vectors u, u' of amplitudes: 1 - sum_i u_i u'_i (1 - lost_i) = |u - u'|^2 / 2 + sum_i u_i u'_i lost_i
        u, v = np.sqrt(a / first), np.sqrt(b / second)
        gamma = gamma + (u - v) ** 2 / 2 + u * v * lost
    return State((first, second), gamma)


def _depth_scale(rate: float) -> float:
    if abs(rate - 1) < 1e-9:
        return math.inf
    return -1 / math.log(abs(rate)) if rate else 0.0


def require_network(network: object) -> None:
    """Raises TypeError naming `network` for anything else."""
    if not isinstance(network, Network):
        raise TypeError(f"network: expected a Network, such as Network({network!r}), got {type(network).__name__}")
