"""Numbers from kernels: alignment of one kernel, and of every layer of a network."""

from ahkernels.statistics.alignment import layerwise_alignment
from ahkernels.statistics.cka import DegenerateKernelWarning, cka
from ahkernels.statistics.estimate import Estimate, estimate_cka, estimate_frobenius_norm
from ahkernels.statistics.fisher import fisher_kernel
from ahkernels.statistics.regression import KernelRegression, kernel_regression
from ahkernels.statistics.similarity import similarity
from ahkernels.statistics.spectrum import Eigenpairs, eigenpairs, eigenvalues, label_correlation, stable_rank

__all__ = [
    "DegenerateKernelWarning",
    "Eigenpairs",
    "Estimate",
    "KernelRegression",
    "cka",
    "eigenpairs",
    "eigenvalues",
    "estimate_cka",
    "estimate_frobenius_norm",
    "fisher_kernel",
    "kernel_regression",
    "label_correlation",
    "layerwise_alignment",
    "similarity",
    "stable_rank",
]
