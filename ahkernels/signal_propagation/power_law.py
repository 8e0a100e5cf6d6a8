"""Exponents with error bars from values over many decades."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahkernels.signal_propagation.inputs import real, require

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PowerLaw:
    """y = constant * x^exponent, and what a least-squares fit says of it.

    Attributes:
        exponent: fitted.
        exponent_error: its standard error, from the residuals: for exact values, of how far they are from a power law.
        constant: fitted.
        constant_error: its standard error.
        residual: root mean square of the residuals of log y.
    """

    exponent: float
    exponent_error: float
    constant: float
    constant_error: float
    residual: float

    def __call__(self, x: Any) -> Array:
        """The power law at x, without corrections."""
        return self.constant * np.asarray(x, dtype=np.float64) ** self.exponent


def fit_power_law(x: Any, y: Any, corrections: Sequence[Any] = ()) -> PowerLaw:
    """Least squares of log y = exponent log x + log constant + sum_i b_i corrections_i.

    Args:
        x: [k], above 0.
        y: [k], above 0.
        corrections: further columns [k], such as log(l) / l and 1 / l: the terms by which theorem 2's proof (lemma 2)
            says that log y is off.

    Raises:
        ValueError: if values are out of range or not finite, shapes differ, or there are too few of them.
    """
    x, y = real("x", x), real("y", y)
    if not isinstance(corrections, Sequence):
        raise TypeError(f"corrections: expected a sequence of columns, got {type(corrections).__name__}")
    columns = [real(f"corrections[{i}]", column) for i, column in enumerate(corrections)]
    for name, array in (("x", x), ("y", y)):
        require(name, array, array > 0, "numbers above 0")
    for name, array in (("y", y), *((f"corrections[{i}]", column) for i, column in enumerate(columns))):
        if array.shape != x.shape or x.ndim != 1:
            raise ValueError(f"{name}: expected the shape [k] of x, got {list(array.shape)} and {list(x.shape)}")
    unknowns = 2 + len(columns)
    if len(np.unique(x)) <= unknowns:
        raise ValueError(f"x: expected at least {unknowns + 1} different values, got {len(np.unique(x))}")
    origin = np.log(x).mean()
    design = np.stack([np.log(x) - origin, np.ones_like(x), *columns], axis=1)
    scale = np.abs(design).max(axis=0)
    scale[scale == 0] = 1
    solution, _, rank, _ = np.linalg.lstsq(design / scale, np.log(y), rcond=None)
    if rank < unknowns:
        raise ValueError("corrections: expected columns that are independent of log x, 1 and each other")
    residual = np.log(y) - design / scale @ solution
    variance = float(residual @ residual) / (len(x) - unknowns)
    covariance = variance * np.linalg.inv((design / scale).T @ (design / scale)) / np.outer(scale, scale)
    exponent, middle = (solution / scale)[:2]
    constant = math.exp(middle - exponent * origin)
    error = covariance[1, 1] + origin**2 * covariance[0, 0] - 2 * origin * covariance[0, 1]
    return PowerLaw(
        float(exponent),
        math.sqrt(covariance[0, 0]),
        constant,
        constant * math.sqrt(max(error, 0)),
        math.sqrt(float(residual @ residual) / len(x)),
    )
