"""The layer where alignment peaks as a power of the depth: lines on log-log axes, with intervals (section 3.4).

Every depth is one point of a line, however many networks it has. Intervals are percentiles over networks drawn anew:
depths with replacement, and for each of them seeds with replacement, so that they count how peaks scatter from seed to
seed and from depth to depth. A depth of one seed counts for the second alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from experiments.common.figures import Array

CONFIDENCE = 0.95
RESAMPLES = 2000
LEAST_DEPTHS = 3
# The layer of a depth: the geometric mean of its networks' peaks, or the peak of the curve averaged over them.
SINGLE, AVERAGED = "single", "averaged"


@dataclass(frozen=True)
class Line:
    """layer = constant * x^slope, by least squares in the logarithms.

    Attributes:
        log_x: The logarithm of x at each depth, [D].
        log_layers: The logarithm of the layer at each depth, [D].
        slope: The slope.
        constant: The constant.
        resampled: Slopes and constants of networks drawn anew, [2, draws].
    """

    log_x: Array
    log_layers: Array
    slope: float
    constant: float
    resampled: Array

    def __call__(self, x: Array) -> Array:
        """The layer at x."""
        return self.constant * x**self.slope

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the slope."""
        low, high = np.quantile(self.resampled[0], _tails())
        return float(low), float(high)

    def band(self, x: Array) -> tuple[Array, Array]:
        """The interval of the line at each x."""
        slopes, constants = self.resampled[:, :, None]
        low, high = np.quantile(constants * x**slopes, _tails(), axis=0)
        return low, high

    def constant_at(self, slope: float) -> float:
        """The constant of the line with another slope that is nearest in the logarithms."""
        return float(np.exp(np.mean(self.log_layers - slope * self.log_x)))

    def residual_at(self, slope: float) -> float:
        """The root mean square distance of log layer from the nearest line with a slope."""
        return float(np.std(self.log_layers - slope * self.log_x))


def line(curves: Mapping[int, Array], x: Mapping[int, float], of: str) -> Line | None:
    """Fit the layer where alignment peaks; None with fewer than LEAST_DEPTHS depths.

    Args:
        curves: For each depth the alignment by layer of its networks, [seeds, L].
        x: For each depth what the layer is a power of. Depths where it is nan are left out.
        of: SINGLE or AVERAGED.
    """
    depths = [depth for depth in sorted(curves) if math.isfinite(x[depth])]
    if len(depths) < LEAST_DEPTHS:
        return None
    log_x = np.log([x[depth] for depth in depths])
    log_layers = np.array([_log_layer(curves[depth], of) for depth in depths])
    slope, constant = _least_squares(log_x, log_layers)

    rng = np.random.default_rng(0)
    drawn = rng.integers(len(depths), size=(RESAMPLES, len(depths)))
    drawn = drawn[drawn.min(axis=1) < drawn.max(axis=1)]  # there is no line through one depth
    drawn_layers = np.empty(drawn.shape)
    for index, depth in enumerate(depths):
        here = drawn == index
        networks = curves[depth]
        seeds = rng.integers(len(networks), size=(here.sum(), len(networks)))
        drawn_layers[here] = _log_layer(networks[seeds], of)
    resampled = np.array(_least_squares(log_x[drawn], drawn_layers))
    return Line(log_x, log_layers, float(slope), float(constant), resampled)


def _log_layer(curves: Array, of: str) -> Array:
    """The logarithm of the layer where alignment peaks, [...], from the alignment by layer, [..., seeds, L]."""
    if of == AVERAGED:
        curves = curves.mean(axis=-2, keepdims=True)
    return np.log(np.nanargmax(curves, axis=-1) + 1).mean(axis=-1)


def _least_squares(x: Array, y: Array) -> tuple[Array, Array]:
    """Slope and exp(intercept) of the line through points (x, y): [..., D]."""
    x_mean, y_mean = x.mean(axis=-1, keepdims=True), y.mean(axis=-1, keepdims=True)
    slope = ((x - x_mean) * (y - y_mean)).sum(axis=-1) / ((x - x_mean) ** 2).sum(axis=-1)
    return slope, np.exp(y_mean[..., 0] - slope * x_mean[..., 0])


def _tails() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
