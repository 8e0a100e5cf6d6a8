"""The largest eigenpairs of a symmetric operator by a block Lanczos iteration that may end after any product.

A block of vectors is multiplied at a time, which a kernel does faster than one vector after the other, and which finds
as many copies of an eigenvalue as a block has vectors. All is done on the device of the vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ahkernels.kernel_operator import Product
from ahkernels.samples import Samples

_LEAST_ROOM = 20  # vectors of a basis; so many take little memory beside the factors of a kernel
_BLOCKS_BEYOND = 6  # blocks that a basis has room for beyond the wanted vectors
_PRODUCTS_PER_ROW = 10  # after so many there is no hope of better pairs, as in SciPy
_GROWTH_PER_LOOK = 20  # the basis has grown by one part in so many when it is looked at again
# A vector of which so small a part is not in the others of its block has lost digits of orthogonality.
_LITTLE_OF_ITS_OWN = 1e-3
# An image of which so small a part of the largest image is left is rounding.
_ROUNDING = 1e-14


def largest_eigenpairs(
    product: Product, start: Tensor, k: int, tolerance: float, samples: Samples, o: int, enough: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues of an operator and their eigenvectors.

    With thick restarts (Wu and Simon, 2000), for blocks; every vector is made orthogonal to all of the basis, twice.

    Args:
        product: The operator on vectors float64 [rows, columns].
        start: Any vectors [rows, b], of which none is orthogonal to an eigenvector that is looked for.
        k: Number of eigenvalues, at most the number of rows.
        tolerance: Residual ||K u - lambda u|| of each pair at which to stop, relative to the largest eigenvalue.
        samples: The samples that the rows belong to.
        o: The rows of each sample.
        enough: A residual that is small enough, however small the largest eigenvalue is.

    Returns:
        The eigenvalues [k] from the largest down and their vectors [rows, k], orthonormal; the best pairs where
        residuals stay larger.
    """
    rows, width = samples.n * o, start.shape[1]
    room = min(rows, max(2 * k, k + _BLOCKS_BEYOND * width, _LEAST_ROOM))
    basis = start.new_empty(room, len(start))
    projected = start.new_zeros(len(basis), len(basis))  # the operator between vectors of the basis, its lower half
    block, _ = _orthonormal(start.T, basis[:0], start.new_zeros(()), samples, o)
    size = looked_at = 0
    values, vectors, scale = start.new_zeros(0), start.new_zeros(0, 0), start.new_zeros(())
    for _ in range(_PRODUCTS_PER_ROW * rows // width):
        if size + len(block) > room:
            size, looked_at = min(k + max((room - k) // 3, width), room - len(block)), 0
            _rotate(basis, vectors[:, -size:].T)
            projected.zero_()
            projected[:size, :size] = values[-size:].diag()
        begin, size = size, size + len(block)
        basis[begin:size] = block
        image = product(block.T.contiguous()).T.clone(memory_format=torch.contiguous_format)
        scale = torch.maximum(scale, samples.norms(image.T).max())
        for _ in range(2):
            parts = samples.sum(image @ basis[:size].T)
            image -= parts @ basis[:size]
            projected[begin:size, :size] += parts
        block, coupling = _orthonormal(image, basis[:size], _ROUNDING * scale, samples, o)
        full = size + len(block) > room
        if size < k or not (full or size == rows or (size - looked_at) * _GROWTH_PER_LOOK >= looked_at):
            continue
        looked_at = size
        values, vectors = torch.linalg.eigh(projected[:size, :size])
        residuals = (coupling @ vectors[begin:, -k:]).norm(dim=0)
        if size == rows or bool((residuals <= max(tolerance * abs(float(values[-1])), enough)).all()):
            break
    return values[-k:].flip(0), (vectors[:, -k:].T @ basis[:size]).flip(0).T


def _orthonormal(image: Tensor, basis: Tensor, rounding: Tensor, samples: Samples, o: int) -> tuple[Tensor, Tensor]:
    """An orthonormal basis [b, rows] of vectors that are orthogonal to a basis, and the vectors in it, as [b, b].

    Where they have fewer dimensions, up to rounding, others take the place of the missing ones; where no dimension is
    left, there are fewer vectors.
    """
    q, r = samples.orthonormal(image.T)
    width = min(len(image), samples.n * o - len(basis))
    own, norms = r.diagonal().abs(), r.norm(dim=0)
    if width == len(image) and bool((own > torch.maximum(_LITTLE_OF_ITS_OWN * norms, rounding)).all()):
        return q.T, r
    nothing = own <= rounding
    others = samples.random(o, q.shape[1], torch.Generator().manual_seed(len(basis))).to(q)
    q = torch.where(nothing, others, q)[:, :width]
    for _ in range(2):
        q, _ = samples.orthonormal(q - basis.T @ samples.sum(basis @ q))
    return q.T, r


def _rotate(basis: Tensor, rotation: Tensor) -> None:
    """Puts combinations of the first vectors of a basis in their place, a slice of the rows at a time."""
    step = 4096
    for begin in range(0, basis.shape[1], step):
        part = basis[:, begin : begin + step]
        part[: len(rotation)] = rotation @ part[: rotation.shape[1]]
