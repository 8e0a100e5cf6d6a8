"""The correlation map of networks with (leaky) ReLU and without biases, for one layer or many layers at once.

In gamma = 1 - c, with cos t = c, all these networks have the map

    gamma' = gamma - kappa (sin t - t cos t) / pi        slope g'(c) = 1 - kappa t / pi

which is equation 3 of the paper's appendix for ReLU, where kappa = 1. Near its fixed point gamma = 0, it has a Fatou
coordinate

    A(t) = 3 pi / (kappa t) + 3/2 log t + sum_j a_j t^j        A(t') = A(t) + 1

that turns a layer into a step of 1. The product of slopes over layers then becomes a difference,

    S(t) = 3 log t + sum_j s_j t^j                             S(t') - S(t) = log g'(c).

Both are asymptotic series. So gamma_l ~ (9 pi^2 / 2) / (kappa l)^2, and the product of slopes over layers k ... l - 1
is ~ (k / l)^3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ORDER = 12  # the order up to which both series are computed
_TERMS = ORDER + 3  # coefficients of the series that they are computed from
_SMALL = 0.7  # for angles below, sin t - t cos t is computed from its series
_SINE = [(-1) ** k * (2 * k + 2) / math.factorial(2 * k + 3) for k in range(8)]  # (sin t - t cos t) / t^3 in t^2
_COSINE = [(-1) ** k / math.factorial(2 * k + 2) for k in range(8)]  # (1 - cos t) / t^2 in t^2
NEWTON_STEPS = 8  # they start from 3 pi / (kappa t) = A, which is right within a few percent


def angle(gamma: Array) -> Array:
    """Computes t in [0, pi] with cos t = 1 - gamma, with full relative accuracy also as gamma goes to 0."""
    t: Array = 2 * np.arcsin(np.sqrt(gamma / 2))
    return t


@dataclass(frozen=True)
class ArcCosineMap:
    """The map gamma -> gamma - kappa (sin t - t cos t) / pi.

    Attributes:
        kappa: The strength of the kink, in [0, 2]: 1 for ReLU, and (1 - a)^2 / (1 + a^2) for a negative slope a. In a
            residual network whose branch adds r times the variance, this times r / (1 + r).
    """

    kappa: float

    def __call__(self, gamma: Array) -> Array:
        """Computes the next layer's gamma, with relative accuracy also near 0, where c would have none."""
        t = angle(gamma)
        square = t * t
        small = np.polynomial.polynomial.polyval(square, _SINE) * (square * t)
        lost = np.where(t < _SMALL, small, np.sin(t) - t * np.cos(t))
        following: Array = np.maximum(gamma - self.kappa / math.pi * lost, 0)  # not below 0 by rounding
        return following

    def slope(self, gamma: Array) -> Array:
        """Computes g'(c) at c = 1 - gamma."""
        slope: Array = 1 - self.kappa / math.pi * angle(gamma)
        return slope

    # ---- many layers at once

    @cached_property
    def reach(self) -> float:
        """The angle up to which both series hold to rounding."""
        if self.kappa == 0:
            return math.inf
        eps, scale = np.finfo(np.float64).eps, 3 * math.pi / self.kappa
        last = [(abs(self._fatou[j]) / scale, j) for j in (ORDER - 1, ORDER)]
        last += [(abs(self._product[j]), j) for j in (ORDER - 1, ORDER)]
        return float(min(1.0, *((eps / size) ** (1 / j) for size, j in last)))

    def advance(self, gamma: Array, layers: float | Array) -> Array:
        """Computes gamma that many layers later, for angles of at most `reach`."""
        if self.kappa == 0:
            return np.broadcast_arrays(gamma, layers)[0].copy()
        with np.errstate(divide="ignore", invalid="ignore"):  # gamma = 0 is treated apart
            t = angle(gamma)
            wanted = self._coordinate(1 / t) + layers
            x = wanted * (self.kappa / (3 * math.pi))
            for _ in range(NEWTON_STEPS):
                x = x - (self._coordinate(x) - wanted) / self._coordinate_slope(x)
            return np.where(gamma > 0, 2 * np.sin(1 / (2 * x)) ** 2, 0.0)

    def log_product(self, gamma: Array, later: Array) -> Array:
        """Sums log g' over the layers that lead from `gamma` to `later`, for angles of at most `reach`."""
        t, u = angle(gamma), angle(later)
        if self.kappa == 0:
            return np.zeros(np.broadcast_shapes(t.shape, u.shape))
        with np.errstate(divide="ignore", invalid="ignore"):
            total = 3 * np.log(u / t) + np.polynomial.polynomial.polyval(u, self._product)
            return np.where(gamma > 0, total - np.polynomial.polynomial.polyval(t, self._product), 0.0)

    def _coordinate(self, x: Array) -> Array:
        """Computes A at t = 1 / x."""
        series = np.polynomial.polynomial.polyval(1 / x, self._fatou)
        return 3 * math.pi / self.kappa * x - 1.5 * np.log(x) + series

    def _coordinate_slope(self, x: Array) -> Array:
        """Computes the derivative of A by x at t = 1 / x."""
        series = np.polynomial.polynomial.polyval(1 / x, np.arange(ORDER + 1) * self._fatou)
        return 3 * math.pi / self.kappa - (1.5 + series) / x

    # ---- the series, computed from the series of t' in t

    @cached_property
    def _next_angle(self) -> Array:
        """The coefficients of t' / t in t, where t' = 2 arcsin sqrt(gamma' / 2)."""
        cosine, sine = np.zeros(_TERMS), np.zeros(_TERMS)
        cosine[::2], sine[::2] = _COSINE, _SINE
        square = 2 * cosine - 2 * self.kappa / math.pi * _shift(sine, 1)  # (2 sin(t' / 2))^2 / t^2
        binomial = np.cumprod(np.array([1.0, *((1.5 - k) / k for k in range(1, _TERMS))]))
        root = _compose(binomial, _without_constant(square))
        total, power = np.zeros(_TERMS), root
        for k in range((_TERMS + 1) // 2):
            total += math.comb(2 * k, k) / (16**k * (2 * k + 1)) * _shift(power, 2 * k)
            power = _multiply(_multiply(power, root), root)
        return total

    @cached_property
    def _log_next_angle(self) -> Array:
        return _log1p(_without_constant(self._next_angle))

    @cached_property
    def _fatou(self) -> Array:
        """The coefficients a_1 ... a_ORDER of A, each at its index."""
        signs = (-1.0) ** np.arange(_TERMS)
        inverse = _compose(signs, _without_constant(self._next_angle))  # t / t'
        short = 3 * math.pi / self.kappa * inverse[1:]  # A(t') - A(t) - 1 without the sum of a_j, from t^0 on
        short[0] -= 1
        return self._telescoped(short + 1.5 * self._log_next_angle[:-1])

    @cached_property
    def _product(self) -> Array:
        """The coefficients s_1 ... s_ORDER of S, each at its index."""
        slope = np.zeros(_TERMS)
        slope[1] = -self.kappa / math.pi
        return self._telescoped(3 * self._log_next_angle - _log1p(slope))

    def _telescoped(self, short: Array) -> Array:
        """Solves sum_j q_j (t'^j - t^j) + short = 0 for the coefficients q_j, from t^2 on."""
        rest, coefficients = short.copy(), np.zeros(ORDER + 1)
        power, rate = self._next_angle, self.kappa / (3 * math.pi)  # t' = t - rate t^2 + ...
        for j in range(1, ORDER + 1):
            coefficients[j] = rest[j + 1] / (j * rate)
            rest += coefficients[j] * _shift(_without_constant(power), j)[: len(rest)]
            power = _multiply(power, self._next_angle)
        return coefficients


def _multiply(a: Array, b: Array) -> Array:
    return np.convolve(a, b)[:_TERMS]


def _shift(a: Array, by: int) -> Array:
    return np.concatenate([np.zeros(by), a])[:_TERMS]


def _without_constant(a: Array) -> Array:
    return np.concatenate([[0.0], a[1:]])


def _compose(outer: NDArray[Any], inner: Array) -> Array:
    """Computes the series sum_j outer_j inner^j, where `inner` has no constant."""
    total = np.zeros(_TERMS)
    for coefficient in outer[::-1]:
        total = _multiply(total, inner)
        total[0] += coefficient
    return total


def _log1p(inner: Array) -> Array:
    index = np.arange(1, _TERMS)
    return _compose(np.concatenate([[0.0], (-1.0) ** (index + 1) / index]), inner)
