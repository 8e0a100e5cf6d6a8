"""Layerwise tangent kernels and their alignment with the data, exact and without a Jacobian."""

from ahkernels.capture import (
    Explanation,
    LayerExplanation,
    explain,
    iter_tangent_kernels,
    register_rule,
    tangent_kernels,
)
from ahkernels.factors import Factors
from ahkernels.kernel import TangentKernel
from ahkernels.ops import build_info
from ahkernels.report import AlignmentReport
from ahkernels.statistics import (
    DegenerateKernelWarning,
    Eigenpairs,
    cka,
    eigenpairs,
    eigenvalues,
    fisher_kernel,
    label_correlation,
    layerwise_alignment,
    similarity,
    stable_rank,
)
from ahkernels.tracker import AlignmentTracker

__version__ = "0.1.0"

__all__ = [
    "AlignmentReport",
    "AlignmentTracker",
    "DegenerateKernelWarning",
    "Eigenpairs",
    "Explanation",
    "Factors",
    "LayerExplanation",
    "TangentKernel",
    "build_info",
    "cka",
    "eigenpairs",
    "eigenvalues",
    "explain",
    "fisher_kernel",
    "iter_tangent_kernels",
    "label_correlation",
    "layerwise_alignment",
    "register_rule",
    "similarity",
    "stable_rank",
    "tangent_kernels",
]
