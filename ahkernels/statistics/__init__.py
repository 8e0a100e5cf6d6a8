"""Statistics of kernels: alignment, similarity, spectra, estimates and regression."""

from ahkernels.statistics.cka import cka
from ahkernels.statistics.degenerate_warning import DegenerateKernelWarning
from ahkernels.statistics.estimate import Estimate, estimate_cka, estimate_frobenius_norm
from ahkernels.statistics.fisher import fisher_kernel
from ahkernels.statistics.layer_statistics import STATISTICS, LayerStatistic
from ahkernels.statistics.regression import KernelRegression, kernel_regression
from ahkernels.statistics.similarity import similarity
from ahkernels.statistics.spectrum import Eigenpairs, eigenpairs, eigenvalues, label_correlation, stable_rank

__all__ = [
    "STATISTICS",
    "DegenerateKernelWarning",
    "Eigenpairs",
    "Estimate",
    "KernelRegression",
    "LayerStatistic",
    "cka",
    "eigenpairs",
    "eigenvalues",
    "estimate_cka",
    "estimate_frobenius_norm",
    "fisher_kernel",
    "kernel_regression",
    "label_correlation",
    "similarity",
    "stable_rank",
]
