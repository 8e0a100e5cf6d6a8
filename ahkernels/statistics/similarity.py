"""How alike tangent kernels are: their alignment with one another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ahkernels.kernel import TangentKernel, centered_moments
from ahkernels.statistics.cka import Measured, is_defined, require_alike

Kernels = Mapping[str, TangentKernel] | Sequence[TangentKernel]


def similarity(kernels: Kernels, others: Kernels | None = None) -> Tensor:
    """Alignment A(K, K') (equation 6) of every kernel with every other, in one pass over tiles of all of them.

    No kernel is held in memory. With the kernels of one network at two times, the diagonal says how far each has moved
    (1 less the kernel velocity); `forward_gram` and `backward_gram` of kernels may be compared, too.

    Args:
        kernels: L kernels over the same rows, such as those of `tangent_kernels`.
        others: L' kernels to compare them with; None for the same ones.

    Returns:
        float64 [L, L'] on the CPU; nan, with a `DegenerateKernelWarning`, where a centered kernel is zero.

    Raises:
        ValueError: for no kernels, or where rows, dtypes or devices do not fit.
    """
    rows, columns = _listed("kernels", kernels), [] if others is None else _listed("others", others)
    together = rows + columns
    for kernel in together[1:]:
        require_alike(together[0], kernel)
    means = [kernel.row_means() for kernel in together]
    moments = centered_moments(together, means).cpu()
    norms = moments.diagonal().sqrt()
    for i, (kernel, mean) in enumerate(zip(together, means, strict=True)):
        if not is_defined(Measured.of(kernel), float(norms[i]), float(mean.sum()) * kernel.shape[0]):
            norms[i] = math.nan
    found = moments / norms[:, None] / norms
    return found[: len(rows), len(rows) :] if columns else found


def _listed(argument: str, kernels: Kernels) -> list[TangentKernel]:
    found = list(kernels.values() if isinstance(kernels, Mapping) else kernels)
    if not found:
        raise ValueError(f"{argument}: expected at least one kernel, got none")
    return found
