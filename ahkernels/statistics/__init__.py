"""Numbers from kernels: alignment of one kernel, and of every layer of a network."""

from ahkernels.statistics.alignment import layerwise_alignment
from ahkernels.statistics.cka import DegenerateKernelWarning, cka

__all__ = ["DegenerateKernelWarning", "cka", "layerwise_alignment"]
