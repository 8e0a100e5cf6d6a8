"""When an alignment is not defined: kernels that are zero or constant, and labels of which centering leaves nothing.

A constant kernel is zero once it is centered, up to rounding. What counts as rounding depends on how the centered
kernel was computed; this is the one place that says so.
"""

from __future__ import annotations

import math
import sys
import warnings
from typing import NamedTuple

import torch

from ahkernels.centering import Centering
from ahkernels.kernel import TangentKernel
from ahkernels.statistics.labels import Labels


class DegenerateKernelWarning(UserWarning):
    """An alignment is not defined, because a centered kernel is zero; its value is nan."""


class RoundingBound(NamedTuple):
    """How small a centered norm of a kernel must be to be no more than rounding; outlives the kernel's factors.

    Attributes:
        name: Name of the kernel, for messages.
        relative: The bound over `constant_part` of the kernel.
    """

    name: str
    relative: float

    @classmethod
    def of(cls, kernel: TangentKernel, centering: Centering | None, argument: str = "kernel") -> RoundingBound:
        """The bound for a kernel that was passed as `argument` and is centered in this way."""
        layer = f" of layer {kernel.name!r}" if kernel.name else ""
        # Blocks that are centered by themselves are computed with their constant part taken out first.
        dtype = torch.float64 if kernel.near_constant(centering) else kernel.dtype
        rows = kernel.n if centering == "per_output" else kernel.shape[0]
        return cls(argument + layer, 64 * torch.finfo(dtype).eps / rows)

    def exceeded_by(self, norm: float, constant: float) -> bool:
        """Whether a centered norm is finite and more than rounding, for a kernel with this constant part."""
        return norm > self.relative * abs(constant) and math.isfinite(norm)


def constant_part(kernel: TangentKernel, centering: Centering | None) -> float:
    """The sum of the entries that centering takes the mean of; 0 without centering.

    Per output these are the blocks on the diagonal.
    """
    if centering is None:
        return 0.0
    return kernel.sum_of_diagonal_blocks() if centering == "per_output" and kernel.o > 1 else kernel.sum()


def kernel_defined(bound: RoundingBound, norm: float, constant: float) -> bool:
    """Whether a centered kernel is more than rounding, with a warning where it is not.

    Args:
        bound: The kernel's bound.
        norm: One of the centered kernel's norms.
        constant: The kernel's constant part.
    """
    if bound.exceeded_by(norm, constant):
        return True
    found = "zero" if constant == 0 else "constant" if math.isfinite(norm) else "not finite"
    _warn(f"{bound.name} is {found}")
    return False


def labels_defined(labels: Labels) -> bool:
    """Whether centering leaves anything of the labels, with a warning where it does not."""
    if labels.norm == 0:
        rows = "of the same output" if labels.centering == "per_output" else "of the kernel"
        _warn(f"y is the same in all rows {rows}")
    return labels.norm > 0


def _warn(what: str) -> None:
    message = f"{what}, so that the alignment is not defined (nan)"
    warnings.warn(message, DegenerateKernelWarning, stacklevel=_level_of_the_caller())


def _level_of_the_caller() -> int:
    """The stack level of the line outside of the package, as `_warn` counts it."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "ahkernels":
        level, frame = level + 1, frame.f_back
    return level
