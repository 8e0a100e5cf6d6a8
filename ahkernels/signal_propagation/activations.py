"""Activations phi, described by Gaussian averages: E[phi(u)^2], E[phi(u) phi(v)] and E[phi'(u) phi'(v)].

Let u and v have variances q and q' and correlation 1 - gamma. Their covariance after the activation is kept as
sqrt(m m') (1 - Gamma) with the second moments m and m'. Every formula here gives Gamma with relative accuracy also as
gamma goes to 0, where 1 - Gamma would have lost all its digits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from ahkernels.signal_propagation.arc_cosine import ArcCosineMap
from ahkernels.signal_propagation.inputs import require_number

Array = NDArray[np.float64]

HALF_RANGE, STEP = 13.0, 1 / 64  # the grid for Gaussian averages; the density at its ends is below rounding
FIRST_TERMS, MOST_TERMS = 64, 2048  # lengths of Hermite series, doubled from the first to the largest
MOST_VARIANCE = 1e3  # for larger variances the grid is too coarse for a smooth step at 0
BLOCK = 2**18  # numbers of a Hermite series that are worked on at a time


class Pair(NamedTuple):
    """Averages of an activation over Gaussian pairs (u, v), all in the shape of the pairs.

    Attributes:
        moments: The second moments E[phi(u)^2] and E[phi(v)^2].
        gamma: Gamma = 1 - E[phi(u) phi(v)] / sqrt(E[phi(u)^2] E[phi(v)^2]), in [0, 2].
        derivative: The average E[phi'(u) phi'(v)].
    """

    moments: tuple[Array, Array]
    gamma: Array
    derivative: Array


class Activation(ABC):
    """An activation phi, by its averages over Gaussians.

    A subclass has `moment`, `moment_slope` and `pair`; all arrays broadcast.

    Example:
        The identity as an activation of its own:

        >>> import numpy as np
        >>> from ahkernels import signal_propagation as sp
        >>> from ahkernels.signal_propagation.activations import Pair
        >>> class Identity(sp.Activation):
        ...     def moment(self, variance):
        ...         return variance
        ...
        ...     def moment_slope(self, variance):
        ...         return np.ones_like(variance)
        ...
        ...     def pair(self, variances, gamma):
        ...         return Pair(variances, gamma, np.ones_like(gamma))
        >>> print(sp.Network(Identity(), weight_variance=1.0).correlation_map([0.1, 0.9], variance=1.0))
        [0.1 0.9]
    """

    @abstractmethod
    def moment(self, variance: Array) -> Array:
        """Computes E[phi(u)^2] for u ~ N(0, variance), elementwise."""

    @abstractmethod
    def pair(self, variances: tuple[Array, Array], gamma: Array) -> Pair:
        """Computes the averages over pairs of Gaussians.

        Args:
            variances: The variances of u and v, above 0.
            gamma: 1 - correlation of u and v, in [0, 2].

        Returns:
            The averages in the broadcast shape.
        """

    @abstractmethod
    def moment_slope(self, variance: Array) -> Array:
        """Computes the derivative of `moment` by the variance, which is E[phi'(u)^2 + phi(u) phi''(u)]."""

    def derivative_moment(self, variance: Array) -> Array:
        """Computes E[phi'(u)^2] for u ~ N(0, variance), elementwise."""
        variance = np.asarray(variance, dtype=np.float64)
        return self.pair((variance, variance), np.zeros_like(variance)).derivative


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """The activation max(x, 0) + negative_slope min(x, 0): ReLU at slope 0, linear at 1, the absolute value at -1.

    Attributes:
        negative_slope: The slope at negative x.

    Raises:
        ValueError: If the slope is not finite.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> print(sp.LeakyReLU(0.0).moment(2.0))  # ReLU halves the second moment
        1.0
    """

    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        require_number("negative_slope", self.negative_slope, lambda value: True)

    @property
    def gain(self) -> float:
        """The ratio E[phi(u)^2] / E[u^2], which is E[phi'(u)^2] too."""
        return (1 + self.negative_slope**2) / 2

    @property
    def map(self) -> ArcCosineMap:
        """The map from gamma to Gamma, which does not depend on the variances."""
        return ArcCosineMap((1 - self.negative_slope) ** 2 / (2 * self.gain))

    def moment(self, variance: Array) -> Array:
        """Computes E[phi(u)^2] in closed form."""
        return self.gain * np.asarray(variance)

    def moment_slope(self, variance: Array) -> Array:
        """Computes the derivative of `moment` in closed form."""
        return np.full(np.shape(variance), self.gain)

    def pair(self, variances: tuple[Array, Array], gamma: Array) -> Pair:
        """Computes the averages over pairs in closed form; see `Activation.pair`."""
        first, second = variances
        return Pair((self.moment(first), self.moment(second)), self.map(gamma), self.gain * self.map.slope(gamma))


@dataclass(frozen=True)
class Erf(Activation):
    """The error function, with E[erf(u) erf(v)] = 2/pi arcsin(2 cov / sqrt((1 + 2 q) (1 + 2 q'))) (Williams, 1997).

    Example:
        >>> import numpy as np
        >>> from ahkernels import signal_propagation as sp
        >>> print(sp.Erf().moment(np.array([0.1, 1.0])).round(3))
        [0.107 0.465]
    """

    def moment(self, variance: Array) -> Array:
        """Computes E[phi(u)^2] in closed form."""
        return 2 / math.pi * np.arcsin(2 * variance / (1 + 2 * variance))

    def moment_slope(self, variance: Array) -> Array:
        """Computes the derivative of `moment` in closed form."""
        return 4 / math.pi / ((1 + 2 * variance) * np.sqrt(1 + 4 * variance))

    def pair(self, variances: tuple[Array, Array], gamma: Array) -> Pair:
        """Computes the averages over pairs in closed form; see `Activation.pair`."""
        first, second = variances
        # With unit vectors in place of variances: u = 2 q / (1 + 2 q) is a squared length, and
        # arcsin a - arcsin b = arcsin((a^2 - b^2) / (a sqrt(1 - b^2) + b sqrt(1 - a^2))) does not cancel.
        a, b = (2 * q / (1 + 2 * q) for q in variances)
        cross = np.sqrt(a * b) * (1 - gamma)
        moments = self.moment(first), self.moment(second)
        lost = (_arcsine_gap(a, b, gamma) + _arcsine_gap(b, a, gamma)) / math.pi
        spread = (np.sqrt(moments[0]) - np.sqrt(moments[1])) ** 2 / 2
        derivative = 4 / math.pi / np.sqrt((1 + 2 * first) * (1 + 2 * second) * (1 - cross) * (1 + cross))
        return Pair(moments, (lost - spread) / np.sqrt(moments[0] * moments[1]), derivative)


def _arcsine_gap(a: Array, b: Array, gamma: Array) -> Array:
    """Computes arcsin(a) - arcsin(sqrt(a b) (1 - gamma)) for a and b in (0, 1) without cancellation."""
    cross = np.sqrt(a * b) * (1 - gamma)
    squares = a * ((a - b) + b * gamma * (2 - gamma))
    flat = a * np.sqrt((1 - cross) * (1 + cross)) + cross * np.sqrt((1 - a) * (1 + a))
    # For a negative `cross`, the denominator may vanish, and the plain difference does not cancel.
    near = cross > 0
    gap = np.arcsin(np.clip(np.divide(squares, flat, out=np.zeros(np.shape(near)), where=near), -1, 1))
    return np.where(near, gap, np.arcsin(a) - np.arcsin(cross))


@dataclass(frozen=True)
class Smooth(Activation):
    """Any smooth function, by its Hermite series phi(sqrt(q) z) = sum_k a_k(q) h_k(z).

    At correlation c, E[phi(u) phi(v)] = sum_k a_k(q) a_k(q') c^k, and E[phi'(u) phi'(v)] is the derivative of this sum
    by c, divided by sqrt(q q').

    Attributes:
        function: The function, elementwise on arrays. The methods raise ValueError for a function with a kink or a
            jump, which has no short series, and for variances so large that a smooth function looks like one.

    Raises:
        TypeError: If it is not a function.

    Example:
        >>> import numpy as np
        >>> from ahkernels import signal_propagation as sp
        >>> network = sp.Network(sp.Smooth(np.sin), weight_variance=1.0)
        >>> print(network.correlation_map([0.0, 0.5, 1.0], variance=1.0).round(3))
        [0.    0.443 1.   ]
    """

    function: Callable[[Array], Array]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function: expected a function of an array, got {type(self.function).__name__}")

    def moment(self, variance: Array) -> Array:
        """Computes E[phi(u)^2] on the grid."""
        return _average(lambda z: self._values(variance, z) ** 2)

    def moment_slope(self, variance: Array) -> Array:
        """Computes the derivative of `moment` on the grid."""
        # d/dq E[f(sqrt(q) z)] = E[f(sqrt(q) z) (z^2 - 1)] / (2 q), by parts
        return _average(lambda z: self._values(variance, z) ** 2 * (z * z - 1)) / (2 * np.asarray(variance))

    def pair(self, variances: tuple[Array, Array], gamma: Array) -> Pair:
        """Computes the averages over pairs from the series; see `Activation.pair`."""
        dims = max(map(np.ndim, (*variances, gamma)))  # the same for all, behind the axis of the series
        first, second, gamma = (np.array(x, dtype=np.float64, ndmin=dims, copy=None) for x in (*variances, gamma))
        terms = max(self._terms(first), self._terms(second))
        a, b = self._series(first, terms), self._series(second, terms)
        moment_a, moment_b = (a * a).sum(0), (b * b).sum(0)
        norm_a, norm_b = np.sqrt(moment_a), np.sqrt(moment_b)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = ((a / norm_a - b / norm_b) ** 2).sum(0) / 2
            lost, slope = _lost(a, b, gamma)
            gamma = spread + lost / (norm_a * norm_b)
        moments = moment_a.reshape(np.shape(variances[0])), moment_b.reshape(np.shape(variances[1]))
        return Pair(moments, gamma, slope / np.sqrt(first * second))

    def _values(self, variance: Array, z: Array) -> Array:
        variance = np.asarray(variance, dtype=np.float64)
        if variance.size and variance.max() > MOST_VARIANCE:
            raise ValueError(
                f"variance: expected at most {MOST_VARIANCE:g} for a smooth activation, got {variance.max():.3g}"
            )
        points = np.sqrt(variance)[..., None] * z
        values = np.asarray(self.function(points), dtype=np.float64)
        if values.shape != points.shape:
            raise ValueError(
                f"activation: expected a function that keeps the shape of an array, here {list(points.shape)}, got "
                f"{list(values.shape)}"
            )
        if not np.isfinite(values).all():
            raise ValueError("activation: expected finite values on the real line, got some that are not")
        return values

    def _series(self, variance: Array, terms: int) -> Array:
        """Computes a_k(q) for k < terms, [terms, *shape of variance]."""
        grid, basis = _hermite(terms)
        return np.moveaxis(self._values(variance, grid) @ basis, -1, 0)

    def _terms(self, variance: Array) -> int:
        """Counts the terms that the series of the derivative needs to hold to rounding."""
        ends = np.array([variance.min(), variance.max()])
        terms = FIRST_TERMS
        while terms <= MOST_TERMS:
            weights = np.arange(terms)[:, None] * self._series(ends, terms) ** 2
            if (weights[3 * terms // 4 :].sum(0) <= 1e-15 * weights.sum(0)).all():
                return terms
            terms *= 2
        raise ValueError(
            f"activation: expected a smooth function with a Hermite series of at most {MOST_TERMS} terms at variances "
            f"{ends[0]:.3g} to {ends[1]:.3g}, got one that needs more; a kink needs LeakyReLU, and a large variance "
            "makes any step sharp"
        )


def _lost(a: Array, b: Array, gamma: Array) -> tuple[Array, Array]:
    """Computes sum_k a_k b_k (1 - c^k) and sum_k k a_k b_k c^(k - 1) by Horner's rule, a block of k at a time.

    With w_k = a_k b_k, the first sum is gamma sum_j c^j (w_{j+1} + w_{j+2} + ...), where nothing cancels if all w_k and
    c are positive.
    """
    shape = np.broadcast_shapes(a.shape[1:], b.shape[1:], gamma.shape)
    lost, slope, tail = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    block = min(len(a), max(1, BLOCK // max(1, math.prod(shape))))
    powers = np.cumprod(np.broadcast_to(1 - gamma, (block, *gamma.shape)), axis=0)  # from c^1 on
    below = np.concatenate([np.ones((1, *gamma.shape)), powers[:-1]])  # from c^0 on
    for start in reversed(range(1, len(a), block)):
        weights = a[start : start + block] * b[start : start + block]
        count = len(weights)
        k = np.arange(start, start + count).reshape(-1, *[1] * len(shape))
        tails = weights[::-1].cumsum(axis=0)[::-1] + tail
        tail = tails[0]
        lost = lost * powers[count - 1] + (tails * below[:count]).sum(0)
        slope = slope * powers[count - 1] + (k * weights * below[:count]).sum(0)
    return gamma * lost, slope


def _average(values: Callable[[Array], Array]) -> Array:
    """Computes E[values(z)] for z ~ N(0, 1) as a sum on a grid, which holds to rounding for analytic functions.

    Args:
        values: Values [..., points] at the points z of the grid.
    """
    grid, basis = _hermite(1)
    average: Array = values(grid) @ basis[:, 0]
    return average


@lru_cache(maxsize=8)
def _hermite(terms: int) -> tuple[Array, Array]:
    """Computes the grid z [points], and orthonormal h_k(z) times density and spacing, [points, terms]."""
    count = round(2 * HALF_RANGE / STEP) + 1
    z = np.linspace(-HALF_RANGE, HALF_RANGE, count)
    half = np.exp(-z * z / 4) / (2 * math.pi) ** 0.25  # the square root of the density
    basis = np.zeros((terms, count))
    basis[0] = half
    if terms > 1:
        basis[1] = z * half
    for k in range(1, terms - 1):
        basis[k + 1] = (z * basis[k] - math.sqrt(k) * basis[k - 1]) / math.sqrt(k + 1)
    weighted = (basis * (half * STEP)).T
    for array in (z, weighted):
        array.flags.writeable = False  # the cache shares it
    return z, weighted


def _gelu(x: Array) -> Array:
    y: Array = x * scipy.special.ndtr(x)
    return y


ACTIVATIONS: dict[str, Activation] = {
    "relu": LeakyReLU(0.0),
    "leaky_relu": LeakyReLU(),
    "linear": LeakyReLU(1.0),
    "erf": Erf(),
    "tanh": Smooth(np.tanh),
    "gelu": Smooth(_gelu),
}


def activation_of(value: str | Activation) -> Activation:
    """Returns the activation of a name, or the activation that was given.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If the value is neither a name nor an `Activation`.
    """
    if isinstance(value, Activation):
        return value
    expected = f"activation: expected an Activation or one of {', '.join(ACTIVATIONS)}"
    if not isinstance(value, str):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    if value not in ACTIVATIONS:
        raise ValueError(f"{expected}, got {value!r}")
    return ACTIVATIONS[value]
