"""Power laws, fitted with error bars to values over many decades."""

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
    """The power law y = constant * x^exponent that `fit_power_law` found.

    Standard errors come from the residuals. For values without noise, they tell how far these are from a power law.

    Attributes:
        exponent: The fitted exponent.
        exponent_standard_error: The standard error of the exponent.
        constant: The fitted constant.
        constant_standard_error: The standard error of the constant.
        residual: The root mean square of the residuals of log y.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> law = sp.PowerLaw(0.5, 0.0, 3.0, 0.0, 0.0)
        >>> print(law([4.0, 100.0]))
        [ 6. 30.]
    """

    exponent: float
    exponent_standard_error: float
    constant: float
    constant_standard_error: float
    residual: float

    def __call__(self, x: Any) -> Array:
        """Evaluates the power law, without corrections, at x of any shape."""
        return self.constant * np.asarray(x, dtype=np.float64) ** self.exponent


def fit_power_law(x: Any, y: Any, corrections: Sequence[Any] = ()) -> PowerLaw:
    """Fits log y = exponent log x + log constant + sum_i b_i corrections_i by least squares.

    Args:
        x: Numbers [k] above 0.
        y: Numbers [k] above 0.
        corrections: Further columns [k], by which log y departs from a straight line. The proof of theorem 2 (lemma 2)
            has log(l) / l and 1 / l.

    Returns:
        The power law, without the corrections.

    Raises:
        ValueError: If values are out of range or not finite, shapes differ, there are too few different x, or a
            correction depends linearly on log x, a constant and the others.
        TypeError: If `corrections` is not a sequence.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> depths = [10, 100, 1000, 10000]
        >>> law = sp.fit_power_law(depths, [8.5, 32, 126, 500])
        >>> print(f"{law.exponent:.3f} ± {law.exponent_standard_error:.3f}")
        0.590 ± 0.004
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
    log_constant_variance = covariance[1, 1] + origin**2 * covariance[0, 0] - 2 * origin * covariance[0, 1]
    return PowerLaw(
        exponent=float(exponent),
        exponent_standard_error=math.sqrt(covariance[0, 0]),
        constant=constant,
        constant_standard_error=constant * math.sqrt(max(log_constant_variance, 0)),
        residual=math.sqrt(float(residual @ residual) / len(x)),
    )
