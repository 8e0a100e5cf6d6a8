"""How alike tangent kernels are: their alignment with one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ahkernels.centering import Centering, require_centering
from ahkernels.distributed.together import together
from ahkernels.kernel import TangentKernel
from ahkernels.statistics.cka import alignment_matrix
from ahkernels.statistics.debiased import require_flag

Kernels = Mapping[str, TangentKernel] | Sequence[TangentKernel]


@together
def similarity(
    kernels: Kernels,
    others: Kernels | None = None,
    *,
    centering: Centering = "global",
    debiased: bool = False,
) -> Tensor:
    """Alignment A(K, K') (equation 6) of every kernel with every other, in one pass over the tiles of all of them.

    No kernel is held in memory. With the kernels of one network at two times, the diagonal says how far each has moved:
    1 means not at all. The kernels may also be forward or backward Grams.

    Args:
        kernels: L kernels over the same rows, such as those of `tangent_kernels`.
        others: L' kernels to compare them with; None to compare them with one another.
        centering: "global" or "per_output": see `cka`.
        debiased: Whether to leave out the products of each sample with itself, which make kernels look alike where
            samples are few: see `cka`. It takes the diagonal of each kernel, and no further pass.

    Returns:
        float64 [L, L'] on the CPU; nan, with a `DegenerateKernelWarning`, where a centered kernel is zero.

    Raises:
        TypeError: For anything but kernels.
        ValueError: For no kernels or another centering, if rows, dtypes or devices do not fit, or if there are no
            debiased alignments.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> ah.similarity(ah.tangent_kernels(model, torch.randn(20, 4))).shape
        torch.Size([2, 2])
    """
    require_centering(centering)
    require_flag(debiased)
    rows, columns = _listed("kernels", kernels), [] if others is None else _listed("others", others)
    together = rows + columns
    found = alignment_matrix(together, ["kernel"] * len(together), centering, debiased=debiased)
    return found[: len(rows), len(rows) :] if columns else found


def _listed(argument: str, kernels: Kernels) -> list[TangentKernel]:
    if not isinstance(kernels, (Mapping, Sequence)):
        raise TypeError(
            f"{argument}: expected a mapping or a sequence of tangent kernels, got {type(kernels).__name__}"
        )
    found = list(kernels.values() if isinstance(kernels, Mapping) else kernels)
    if not found:
        raise ValueError(f"{argument}: expected at least one kernel, got none")
    for kernel in found:
        if not isinstance(kernel, TangentKernel):
            raise TypeError(f"{argument}: expected tangent kernels, got {type(kernel).__name__}")
    return found
