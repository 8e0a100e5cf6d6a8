"""The alignment that labels have by chance: the same kernels with labels shuffled among the samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import ahkernels as ah
from ahkernels.centering import Centering
from experiments.common.data import Samples
from experiments.common.measuring import CENTERINGS
from experiments.common.store import Row

SHUFFLES = 20


class NullLevel:
    """Alignments of a model's layers with shuffled labels; the shuffles stay the same along training.

    Args:
        probe: The samples and their classes.
        classes: The number of classes.
        precision: The precision of kernels.
    """

    def __init__(self, probe: Samples, classes: int, precision: str) -> None:
        self._x, labels = probe
        self._precision = precision
        rng = np.random.default_rng(0)
        orders = np.stack([rng.permutation(len(labels)) for _ in range(SHUFFLES)])
        shuffled = functional.one_hot(labels[torch.from_numpy(orders).to(labels.device)], classes).double()
        columns = shuffled.flatten(1).T  # [n * o, shuffles]
        rows = ah.samples.Samples(len(labels))
        self._targets = {centering: _unit(rows.center(columns, classes, centering)) for centering in CENTERINGS}

    def alignments(self, model: nn.Module, reports: Mapping[Centering, ah.AlignmentReport]) -> dict[Centering, Tensor]:
        """The alignment with each shuffle, [layers, shuffles], by centering.

        Args:
            model: The network.
            reports: What was measured on the same samples with their own labels, which has the norms of the kernels:
                no shuffle changes them.
        """
        layers = next(iter(reports.values())).layers
        found: dict[Centering, Tensor] = {}
        kernels = ah.iter_tangent_kernels(model, self._x, layers=layers, precision=self._precision)
        products = [[kernel.quadratic(v) for v in self._targets.values()] for _, kernel in kernels]
        for centering, of_layers in zip(self._targets, zip(*products, strict=True), strict=True):
            found[centering] = torch.stack(of_layers).cpu() / reports[centering].centered_norm[:, None]
        return found

    def row(self, part: str, model: nn.Module, reports: Mapping[Centering, ah.AlignmentReport]) -> Row:
        """Columns null/<probe>/<centering>/<layer> with the mean over shuffles, null_least/... and null_greatest/...

        So few shuffles tell no more than four digits.
        """
        row: Row = {}
        for centering, values in self.alignments(model, reports).items():
            of = {"null": values.mean(1), "null_least": values.amin(1), "null_greatest": values.amax(1)}
            for name, numbers in of.items():
                for layer, value in zip(reports[centering].layers, numbers.tolist(), strict=True):
                    row[f"{name}/{part}/{centering}/{layer}"] = float(f"{value:.4g}")
        return row


def _unit(columns: Tensor) -> Tensor:
    """The columns scaled so that v^T K v is the alignment times the norm of K."""
    return columns / columns.norm(dim=0)
