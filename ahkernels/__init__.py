"""Layerwise tangent kernels and their alignment with the data, exact and without a Jacobian."""

from ahkernels import signal_propagation
from ahkernels.capture import (
    CaptureOptions,
    Explanation,
    LayerExplanation,
    Rule,
    explain,
    iter_tangent_kernels,
    register_rule,
    tangent_kernels,
)
from ahkernels.capture.guard import evaluating
from ahkernels.certificate import Certificate
from ahkernels.checkpoints import measure_checkpoints
from ahkernels.cross_kernel import CrossKernel
from ahkernels.distributed import RankError
from ahkernels.factors import LayerFactors, NonFiniteError
from ahkernels.files.kernels import load_kernels, save_kernels
from ahkernels.first_samples import first_samples
from ahkernels.history import AlignmentHistory, Measurement
from ahkernels.kernel import TangentKernel
from ahkernels.layerwise import layerwise_alignment
from ahkernels.measurement_grid import measurement_grid
from ahkernels.ops import build_info
from ahkernels.plotting import plot_similarity, plot_spectrum
from ahkernels.report import AlignmentReport
from ahkernels.statistics import (
    STATISTICS,
    DegenerateKernelWarning,
    Eigenpairs,
    Estimate,
    KernelRegression,
    LayerStatistic,
    cka,
    eigenpairs,
    eigenvalues,
    estimate_cka,
    estimate_frobenius_norm,
    fisher_kernel,
    kernel_regression,
    label_correlation,
    similarity,
    stable_rank,
)
from ahkernels.tracker import AlignmentTracker, ScalarWriter

__version__ = "0.2.0"

__all__ = [
    "STATISTICS",
    "AlignmentHistory",
    "AlignmentReport",
    "AlignmentTracker",
    "CaptureOptions",
    "Certificate",
    "CrossKernel",
    "DegenerateKernelWarning",
    "Eigenpairs",
    "Estimate",
    "Explanation",
    "KernelRegression",
    "LayerExplanation",
    "LayerFactors",
    "LayerStatistic",
    "Measurement",
    "NonFiniteError",
    "RankError",
    "Rule",
    "ScalarWriter",
    "TangentKernel",
    "build_info",
    "cka",
    "eigenpairs",
    "eigenvalues",
    "estimate_cka",
    "estimate_frobenius_norm",
    "evaluating",
    "explain",
    "first_samples",
    "fisher_kernel",
    "iter_tangent_kernels",
    "kernel_regression",
    "label_correlation",
    "layerwise_alignment",
    "load_kernels",
    "measure_checkpoints",
    "measurement_grid",
    "plot_similarity",
    "plot_spectrum",
    "register_rule",
    "save_kernels",
    "signal_propagation",
    "similarity",
    "stable_rank",
    "tangent_kernels",
]
