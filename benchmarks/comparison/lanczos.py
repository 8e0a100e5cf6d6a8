"""The largest eigenvalue of a symmetric matrix from products with it, by Lanczos iteration.

It differs from scipy.sparse.linalg.eigsh in that it looks after each product whether it is done, and stays on the
device: a contender that iterates takes as few products as a good user would need.
"""

from collections.abc import Callable

import torch


def largest_eigenvalue(
    product: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, tolerance: float, most: int = 300
) -> torch.Tensor:
    """The eigenvalue, fp64 [1], to a residual of `tolerance` times itself; the basis is kept and orthogonalised twice.

    Args:
        product: The matrix times a vector [rows].
        start: Any vector [rows] of the matrix's type and device that is not orthogonal to the eigenvector.
        tolerance: Residual at which to stop, relative to the eigenvalue.
        most: Products at the most.
    """
    basis, diagonal, below = [start / torch.linalg.vector_norm(start)], [], []
    for _ in range(min(most, len(start))):
        v = product(basis[-1])
        diagonal.append(float(basis[-1] @ v))
        known = torch.stack(basis)
        for _ in range(2):
            v = v - known.T @ (known @ v)
        below.append(float(torch.linalg.vector_norm(v)))
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if len(diagonal) > 1:
            beside = torch.tensor(below[:-1], dtype=torch.float64)
            small = small + torch.diag(beside, 1) + torch.diag(beside, -1)
        values, vectors = torch.linalg.eigh(small)
        if below[-1] * abs(float(vectors[-1, -1])) <= tolerance * float(values[-1]):
            break
        basis.append(v / below[-1])
    return values[-1:]
