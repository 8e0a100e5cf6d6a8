"""The labels that a kernel is compared with, as a kernel of their own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ahkernels.centering import Centering
from ahkernels.outputs import OutputSelection
from ahkernels.samples import Samples


class Labels:
    """Targets of a kernel's rows, as the kernel K' = Y Y^T.

    Args:
        outputs: The outputs that the rows are.
        y: Class indices [n] or a target matrix [n, o], for the samples here.
        samples: The samples of the kernel.
        centering: See below.

    Attributes:
        centering: Centering of the kernel that they are compared with; None (for Fisher information) is "global" here.
        rows: Y for the samples here: float64 [n*o, 1] for kernels over pairs of samples and outputs, [n, columns] for
            those over samples.
        centered: C Y.
        norm: ||C K' C||_F = ||Y~^T Y~||_F with centered columns Y~; 0 where that is no more than rounding.
    """

    def __init__(self, outputs: OutputSelection, y: Tensor, samples: Samples, centering: Centering | None) -> None:
        labels = samples.everywhere(lambda: outputs.labels(y, samples.count))
        o = 1 if outputs.per_sample else labels.shape[1]
        self.centering: Centering = centering or "global"
        self.rows = labels if o == 1 else labels.reshape(-1, 1)
        self.centered = samples.center(self.rows, o, self.centering)
        norm = float(samples.inner(self.centered, self.centered).norm())
        constant = float(samples.sum((self.rows - self.centered).square().sum()))
        self.norm = norm if norm > 64 * torch.finfo(torch.float64).eps * constant else 0.0

    def to(self, device: torch.device) -> Labels:
        """The same on the device of kernels: a copy to it waits, so that there is one for all layers."""
        moved = copy.copy(self)
        moved.rows, moved.centered = torch.stack((self.rows, self.centered)).to(device).unbind()
        return moved
