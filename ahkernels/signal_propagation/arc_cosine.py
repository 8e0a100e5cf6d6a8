"""The correlation map of networks with (leaky) ReLU, in gamma = 1 - c: one layer, and any number of layers at once.

With cos t = c = 1 - gamma, all such networks without biases have the map

    gamma' = gamma - kappa (sin t - t cos t) / pi        slope g'(c) = 1 - kappa t / pi

which is equation 3 of the paper's appendix for ReLU, kappa = 1. Near its fixed point gamma = 0 it has a Fatou
coordinate

    A(t) = 3 pi / (kappa t) + 3/2 log t + sum_j a_j t^j        A(t') = A(t) + 1

that turns a layer into a step of 1, and with it the product of slopes becomes a difference,

    S(t) = 3 log t + sum_j s_j t^j                             S(t') - S(t) = log g'(c).

Both are asymptotic series. So gamma_l ~ (9 pi^2 / 2) / (kappa l)^2 and the product over layers k ... l - 1 ~ (k / l)^3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ORDER = 12  # of the series
_TERMS = ORDER + 3  # of the series that they come from
_SMALL = 0.7  # below this angle, sin t - t cos t comes from its series
_SINE = [(-1) ** k * (2 * k + 2) / math.factorial(2 * k + 3) for k in range(8)]  # (sin t - t cos t) / t^3 in t^2
_COSINE = [(-1) ** k / math.factorial(2 * k + 2) for k in range(8)]  # (1 - cos t) / t^2 in t^2
NEWTON_STEPS = 8  # from 3 pi / (kappa t) = A, which is within a few percent


def angle(gamma: Array) -> Array:
    """T in [0, pi] with cos t = 1 - gamma, to full relative accuracy at gamma = 0."""
    t: Array = 2 * np.arcsin(np.sqrt(gamma / 2))
    return t


@dataclass(frozen=True)
class ArcCosineMap:
    """The map gamma -> gamma - kappa (sin t - t cos t) / pi.

    Attributes:
        kappa: strength of the kink, in [0, 2]: 1 for ReLU, (1 - a)^2 / (1 + a^2) for a negative slope a, times
            r / (1 + r) in a residual network whose branch adds r times the variance.
    """

    kappa: float

    def __call__(self, gamma: Array) -> Array:
        """The next layer's gamma: relative accuracy near 0, where c would keep none."""
        t = angle(gamma)
        square = t * t
        small = np.polynomial.polynomial.polyval(square, _SINE) * (square * t)
        lost = np.where(t < _SMALL, small, np.sin(t) - t * np.cos(t))
        following: Array = np.maximum(gamma - self.kappa / math.pi * lost, 0)  # rounding might leave less of 2 - kappa
        return following

    def slope(self, gamma: Array) -> Array:
        """g'(c) at c = 1 - gamma."""
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
        """Gamma after so many layers more, where all angles are within `reach`."""
        if self.kappa == 0:
            return np.broadcast_arrays(gamma, layers)[0].copy()
        with np.errstate(divide="ignore", invalid="ignore"):  # gamma = 0 stays
            t = angle(gamma)
            wanted = self._coordinate(1 / t) + layers
            x = wanted * (self.kappa / (3 * math.pi))
            for _ in range(NEWTON_STEPS):
                x = x - (self._coordinate(x) - wanted) / self._coordinate_slope(x)
            return np.where(gamma > 0, 2 * np.sin(1 / (2 * x)) ** 2, 0.0)

    def log_product(self, gamma: Array, later: Array) -> Array:
        """Sum of log g' over the layers that lead from one gamma to the other, where all angles are within `reach`."""
        t, u = angle(gamma), angle(later)
        if self.kappa == 0:
            return np.zeros(np.broadcast_shapes(t.shape, u.shape))
        with np.errstate(divide="ignore", invalid="ignore"):
            total = 3 * np.log(u / t) + np.polynomial.polynomial.polyval(u, self._product)
            return np.where(gamma > 0, total - np.polynomial.polynomial.polyval(t, self._product), 0.0)

    def _coordinate(self, x: Array) -> Array:
        """A at t = 1 / x."""
        series = np.polynomial.polynomial.polyval(1 / x, self._fatou)
        return 3 * math.pi / self.kappa * x - 1.5 * np.log(x) + series

    def _coordinate_slope(self, x: Array) -> Array:
        """DA/dx at t = 1 / x."""
        series = np.polynomial.polynomial.polyval(1 / x, np.arange(ORDER + 1) * self._fatou)
        return 3 * math.pi / self.kappa - (1.5 + series) / x

    # ---- the series, from those of t' in t

    @cached_property
    def _next_angle(self) -> Array:
        """Coefficients of t' / t in t: t' = 2 arcsin sqrt(gamma' / 2)."""
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
        """A_1 ... a_ORDER of A, at their index."""
        signs = (-1.0) ** np.arange(_TERMS)
        inverse = _compose(signs, _without_constant(self._next_angle))  # t / t'
        short = 3 * math.pi / self.kappa * inverse[1:]  # of A(t') - A(t) - 1 without the sum, from t^0 on
        short[0] -= 1
        return self._telescoped(short + 1.5 * self._log_next_angle[:-1])

    @cached_property
    def _product(self) -> Array:
        """S_1 ... s_ORDER of S, at their index."""
        slope = np.zeros(_TERMS)
        slope[1] = -self.kappa / math.pi
        return self._telescoped(3 * self._log_next_angle - _log1p(slope))

    def _telescoped(self, short: Array) -> Array:
        """Coefficients q_j with sum_j q_j (t'^j - t^j) + short = 0, from t^2 on."""
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
    """Sum_j outer_j inner^j of an inner series without a constant."""
    total = np.zeros(_TERMS)
    for coefficient in outer[::-1]:
        total = _multiply(total, inner)
        total[0] += coefficient
    return total


def _log1p(inner: Array) -> Array:
    index = np.arange(1, _TERMS)
    return _compose(np.concatenate([[0.0], (-1.0) ** (index + 1) / index]), inner)
