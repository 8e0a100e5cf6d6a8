"""When an alignment is not defined: kernels that are zero or constant, and labels of which centering leaves nothing.

A constant kernel is zero once it is centered, up to rounding. What counts as rounding depends on how the centered
kernel was computed; this is the one place that says so.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ahkernels.centering import Centering
from ahkernels.kernel import TangentKernel
from ahkernels.statistics.degenerate_warning import Finding
from ahkernels.statistics.labels import Labels

# How much of a squared norm may be rounding. Repeated numbers, as of one-hot inputs, are rounded alike: squares of
# kernels over 30 to 1,000 of them were off by up to 3e-14 in float64, 7e-6 at "highest" and "high", 7e-3 at "medium".
ROUNDING_IN_FLOAT64 = 2.0**-40
_ROUNDING = {"highest": 2.0**-14, "high": 2.0**-11, "medium": 2.0**-6}


class RoundingBound(NamedTuple):
    """How small a centered norm of a kernel must be to be no more than rounding; outlives the kernel's factors.

    Attributes:
        what: What the kernel is, for messages: the argument that it was passed as, say.
        layer: The name of its layer, if it has one.
        relative: The bound over `constant_part` of the kernel.
        of_square: How much of the squared norm of the centered kernel must be left, without the products of samples
            with themselves, to be more than rounding.
    """

    what: str
    layer: str
    relative: float
    of_square: float = 0.0

    @classmethod
    def of(cls, kernel: TangentKernel, centering: Centering | None, argument: str = "kernel") -> RoundingBound:
        """The bound for a kernel that was passed as `argument` and is centered in this way."""
        # Blocks that are centered by themselves are computed with their constant part taken out first.
        dtype = torch.float64 if kernel.near_constant(centering) else kernel.dtype
        rows = kernel.samples.n if centering == "per_output" else kernel.shape[0]
        of_square = ROUNDING_IN_FLOAT64 if kernel.dtype == torch.float64 else _ROUNDING[kernel.precision]
        return cls(argument, kernel.name, 64 * torch.finfo(dtype).eps / rows, of_square)

    @property
    def name(self) -> str:
        """The kernel with its layer, for messages."""
        return f"{self.what} of layer {self.layer!r}" if self.layer else self.what

    def exceeded_by(self, norm: float, constant: float) -> bool:
        """Whether a centered norm is finite and more than rounding, for a kernel with this constant part."""
        return norm > self.relative * abs(constant) and math.isfinite(norm)


def constant_part(kernel: TangentKernel, centering: Centering | None) -> Tensor:
    """The sum of the entries that centering takes the mean of, on the kernel's device; 0 without centering.

    Per output these are the blocks on the diagonal.
    """
    if centering is None:
        return torch.zeros((), dtype=torch.float64, device=kernel.device)
    if centering == "per_output" and kernel.o > 1:
        return kernel.sum_of_diagonal_blocks()
    return kernel.samples.sum(kernel.row_means().sum()) * kernel.shape[0]


def undefined_kernel(bound: RoundingBound, norm: float, constant: float) -> Finding | None:
    """Finds a centered kernel that is no more than rounding; None if it is more.

    Args:
        bound: The kernel's bound.
        norm: One of the centered kernel's norms.
        constant: The kernel's constant part.
    """
    if bound.exceeded_by(norm, constant):
        return None
    found = "zero" if constant == 0 else "constant" if math.isfinite(norm) else "not finite"
    return Finding(bound.what, found, bound.layer)


def undefined_labels(labels: Labels) -> Finding | None:
    """Finds labels of which centering leaves nothing; None if it leaves something."""
    if labels.norm > 0:
        return None
    rows = "of the same output" if labels.centering == "per_output" else "of the kernel"
    return Finding("y", f"the same in all rows {rows}")


def undefined_debiased(bound: RoundingBound) -> Finding:
    """The finding that too little is left of a kernel without the products of samples with themselves."""
    found = "constant between different samples, up to rounding (take more samples, or a float64 model)"
    return Finding(bound.what, found, bound.layer)


def undefined_debiased_labels() -> Finding:
    """The same of the kernel of labels."""
    return Finding("y", "the same for all pairs of different samples (each class may have a single sample)")
