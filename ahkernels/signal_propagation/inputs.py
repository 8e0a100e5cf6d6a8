"""Pairs of inputs. A network of infinite width depends only on their lengths and the angle between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class InputPairs:
    """Pairs (x, x') of inputs in R^d.

    Attributes:
        gamma: 1 - <x, x'> / (|x| |x'|), in [0, 2], any shape.
        scales: |x|^2 / d and |x'|^2 / d, above 0. They have as many axes as gamma and broadcast to its shape. Inputs on
            the paper's sphere have 1 (equation 10).

    Raises:
        ValueError: If a value is out of range or not finite.

    Example:
        >>> from ahkernels import signal_propagation as sp
        >>> print(sp.InputPairs([0.0, 1.0, 2.0]).gamma)  # equal, orthogonal and opposite inputs
        [0. 1. 2.]
        >>> print(sp.InputPairs.of_inputs([[1.0, 0.0], [0.0, 2.0]]).gamma)
        [[0. 1.]
         [1. 0.]]
    """

    gamma: Array
    scales: tuple[Array, Array] = (np.ones(()), np.ones(()))

    def __post_init__(self) -> None:
        gamma = real("gamma", self.gamma)
        require("gamma", gamma, (gamma >= 0) & (gamma <= 2), "numbers in [0, 2]")
        if gamma.size == 0:
            raise ValueError(f"gamma: expected at least one pair, got shape {list(gamma.shape)}")
        if not isinstance(self.scales, tuple) or len(self.scales) != 2:
            raise ValueError(f"scales: expected a tuple of two, those of x and of x', got {self.scales!r}")
        alike = self.scales[0] is self.scales[1]
        scales = [real("scales", scale) for scale in self.scales]
        for scale in scales:
            require("scales", scale, scale > 0, "numbers above 0")
            if np.broadcast_shapes(gamma.shape, scale.shape) != gamma.shape:
                raise ValueError(
                    f"scales: expected shapes that broadcast to gamma's, {list(gamma.shape)}, got {list(scale.shape)}"
                )
        first, second = (np.array(scale, ndmin=gamma.ndim) for scale in scales)
        object.__setattr__(self, "gamma", gamma)
        object.__setattr__(self, "scales", (first, first if alike else second))

    @classmethod
    def of_correlations(cls, correlation: Any, scale: float = 1.0) -> InputPairs:
        """Makes pairs of inputs that have one length.

        Args:
            correlation: <x, x'> / (|x| |x'|) in [-1, 1], any shape. For correlations close to 1, `InputPairs` itself
                keeps more digits, since it takes gamma.
            scale: |x|^2 / d of all inputs.

        Returns:
            Pairs in the shape of `correlation`.

        Raises:
            ValueError: If a value is out of range or not finite.
        """
        c = real("correlation", correlation)
        require("correlation", c, np.abs(c) <= 1, "numbers in [-1, 1]")
        return cls(1 - c, (real("scale", scale),) * 2)

    @classmethod
    def apart(cls, epsilon: float) -> InputPairs:
        """Makes the two ends of the set E_epsilon of equation 10: correlations -1 and 1 - epsilon.

        The map g of correlations increases, so that a supremum over E_epsilon is taken at one of its ends. It is -1 for
        the loss of forward information, and 1 - epsilon for backward information.

        Args:
            epsilon: A number in (0, 1).

        Returns:
            Pairs of shape [2].

        Raises:
            ValueError: If epsilon is not in (0, 1).
        """
        require_number("epsilon", epsilon, lambda value: 0 < value < 1, "in (0, 1)")
        return cls(np.array([2.0, epsilon]))

    @classmethod
    def of_inputs(cls, x: Any) -> InputPairs:
        """Makes all pairs of the samples of a data set.

        Args:
            x: Samples [n, ...], an array or a tensor.

        Returns:
            Pairs of shape [n, n].

        Raises:
            ValueError: If x has no samples, or a sample is zero or not finite.
        """
        x = real("x", x)
        if x.ndim < 2 or x.size == 0:
            raise ValueError(f"x: expected samples [n, ...], got shape {list(x.shape)}")
        x = x.reshape(len(x), -1)
        largest = np.abs(x).max(axis=1)
        if not largest.all():
            raise ValueError(f"x: expected samples that are not zero, got zeros as sample {int(largest.argmin())}")
        x = x / largest[:, None]  # no overflow in squares
        length = np.sqrt((x * x).sum(axis=1))
        unit = x / length[:, None]
        # By differences: inputs that are nearly alike keep their digits.
        gamma = scipy.spatial.distance.cdist(unit, unit, "sqeuclidean") / 2
        scale = (length * largest / np.sqrt(x.shape[1])) ** 2
        return cls(np.minimum(gamma, 2), (scale[:, None], scale[None, :]))

    def distinct(self) -> InputPairs:
        """Selects the pairs above the diagonal of all pairs [n, n].

        Returns:
            Pairs of shape [n (n - 1) / 2].

        Raises:
            ValueError: If the pairs have another shape, or there is a single sample.
        """
        if self.gamma.ndim != 2 or self.gamma.shape[0] != self.gamma.shape[1] or len(self.gamma) < 2:
            raise ValueError(f"gamma: expected all pairs [n, n] of at least two inputs, got {list(self.gamma.shape)}")
        chosen = np.triu_indices(len(self.gamma), 1)
        first, second = (np.broadcast_to(scale, self.gamma.shape)[chosen] for scale in self.scales)
        return InputPairs(self.gamma[chosen], (first, second))


def real(name: str, value: Any) -> Array:
    """Converts a value to an fp64 array of finite numbers.

    Raises:
        ValueError: If a number is not finite or not real; the message names the argument.
    """
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if np.iscomplexobj(array):
            raise TypeError("complex numbers")
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected real numbers, got {type(value).__name__} ({error})") from error
    require(name, array, np.isfinite(array), "finite numbers")
    return array


def require(name: str, array: Array, accepted: NDArray[np.bool_], expected: str) -> None:
    """Raises ValueError, naming the argument and the first value that is not accepted, if there is one."""
    if not accepted.all():
        raise ValueError(f"{name}: expected {expected}, got {array[~accepted].flat[0]}")


def require_number(name: str, value: Any, accept: Callable[[float], bool], expected: str = "") -> None:
    """Raises ValueError, naming the argument, unless the value is a finite real number that is accepted."""
    if not (isinstance(value, Real) and math.isfinite(value) and accept(float(value))):
        raise ValueError(f"{name}: expected a finite number{' ' * bool(expected)}{expected}, got {value!r}")
