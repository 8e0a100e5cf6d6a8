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
from ahkernels.statistics import DegenerateKernelWarning, cka, layerwise_alignment
from ahkernels.tracker import AlignmentTracker

__version__ = "0.1.0"

__all__ = [
    "AlignmentReport",
    "AlignmentTracker",
    "DegenerateKernelWarning",
    "Explanation",
    "Factors",
    "LayerExplanation",
    "TangentKernel",
    "build_info",
    "cka",
    "explain",
    "iter_tangent_kernels",
    "layerwise_alignment",
    "register_rule",
    "tangent_kernels",
]
