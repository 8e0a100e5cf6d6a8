"""Numbers from kernels: alignment of one kernel, and of every layer of a network."""

from ahkernels.statistics.alignment import layerwise_alignment
from ahkernels.statistics.cka import DegenerateKernelWarning, cka
from ahkernels.statistics.fisher import fisher_kernel
from ahkernels.statistics.similarity import similarity
from ahkernels.statistics.spectrum import Eigenpairs, eigenpairs, eigenvalues, label_correlation, stable_rank

__all__ = [
    "DegenerateKernelWarning",
    "Eigenpairs",
    "cka",
    "eigenpairs",
    "eigenvalues",
    "fisher_kernel",
    "label_correlation",
    "layerwise_alignment",
    "similarity",
    "stable_rank",
]
