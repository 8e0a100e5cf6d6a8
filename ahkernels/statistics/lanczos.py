"""The largest eigenpair of a symmetric operator by a Lanczos iteration that may end after any product.

ARPACK's looks only once its basis is full whether it is done.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_KEPT = 20  # vectors of the basis; so many take little memory beside the factors of a kernel
_RESTARTED = 8  # Ritz vectors that stay when the basis is full
_PRODUCTS_PER_ROW = 10  # after so many there is no hope of a better pair, as in SciPy


def largest_eigenpair(product: Callable[[Array], Array], start: Array, tolerance: float) -> tuple[float, Array]:
    """The largest eigenvalue of an operator without negative ones, and its eigenvector.

    With thick restarts (Wu and Simon, 2000); every vector is made orthogonal to all of the basis, twice.

    Args:
        product: The operator on vectors [rows].
        start: Any vector [rows] that is not orthogonal to the eigenvector.
        tolerance: Residual ||K u - lambda u|| at which to stop, relative to the eigenvalue.

    Returns:
        The eigenvalue and its vector [rows]; the best pair where the residual stays larger.
    """
    rows = len(start)
    kept = min(_KEPT, rows)
    basis = np.empty((kept + 1, rows))
    basis[0] = start / np.linalg.norm(start)
    projected = np.zeros((kept, kept))  # the operator between vectors of the basis
    last = 0  # vector of the basis that was not multiplied yet
    for _ in range(_PRODUCTS_PER_ROW * rows):
        size = last + 1
        image = np.array(product(basis[last]))
        for _ in range(2):
            parts = basis[:size] @ image
            image -= parts @ basis[:size]
            projected[:size, last] += parts
        projected[last, :size] = projected[:size, last]
        values, vectors = np.linalg.eigh(projected[:size, :size])
        rest = float(np.linalg.norm(image))
        if size == rows or rest * abs(vectors[-1, -1]) <= tolerance * abs(values[-1]):
            break
        basis[size] = image / rest
        last = size
        if size == kept:
            basis[:_RESTARTED] = vectors[:, -_RESTARTED:].T @ basis[:kept]
            basis[_RESTARTED] = basis[kept]
            projected[:] = 0
            np.fill_diagonal(projected[:_RESTARTED, :_RESTARTED], values[-_RESTARTED:])
            last = _RESTARTED
    return float(values[-1]), vectors[:, -1] @ basis[:size]
