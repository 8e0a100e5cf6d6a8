"""Tangent kernels of layers of infinite width, and their alignment with labels: the hierarchy at initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahkernels.centering import Centering, require_centering
from ahkernels.ops.moments import Moments
from ahkernels.outputs import OutputSelection
from ahkernels.report import AlignmentReport
from ahkernels.signal_propagation.inputs import InputPairs
from ahkernels.signal_propagation.network import Network
from ahkernels.signal_propagation.propagation import last_layers, layers_within, propagate, require_depth
from ahkernels.statistics.alignment_numbers import AlignmentNumbers
from ahkernels.statistics.degenerate import RoundingBound
from ahkernels.statistics.labels import Labels

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerKernels:
    """Kernels of layers of a network of infinite width, over n samples.

    The tangent kernel of a layer's weights over (sample, output) pairs, divided by the layer's fan-in, goes to
    K_l = k_l (x) I with an n x n kernel k_l = forward o backward (equation 9); that of its biases, divided likewise,
    goes to 0.

    Attributes:
        depth: L.
        layers: [k], counted from 1.
        forward: I^f_l, [k, n, n].
        backward: N I^b_l, [k, n, n]; of residual branches times the square of their scale.
        norms: sqrt of the diagonal of k_l over e^log_scale, [k, n].
        log_scale: [k], such that the greatest norm is 1: kernels may be beyond what a float holds.
        lost: 1 - k_l(x, x') / (norms norms'), [k, n, n], with relative accuracy where k_l is nearly constant.
    """

    depth: int
    layers: NDArray[np.int64]
    forward: Array
    backward: Array
    norms: Array
    log_scale: Array
    lost: Array

    def tangent(self) -> Array:
        """k_l, [k, n, n]."""
        scale = np.exp(self.log_scale)[:, None, None]
        return scale * self.norms[:, :, None] * self.norms[:, None, :] * (1 - self.lost)

    def alignment(
        self, y: Tensor, outputs: Literal["all", "trace"] = "all", *, centering: Centering = "global"
    ) -> AlignmentReport:
        """Centered kernel alignment of every K_l with the labels (equation 7).

        Args:
            y: class indices [n] of as many classes as there are outputs, or a target matrix [n, o].
            outputs: "all": K_l over (sample, output) pairs; "trace": its sum over outputs, n x n, whose finite-width
                counterpart is much closer: kernels between different outputs, which are 0 here, do not enter.
            centering: "global" or "per_output": see `ahkernels.cka`.

        Returns:
            A report with a layer's name "layer1", ...; norms and traces are those of K_l above. Layers whose centered
            kernel is zero have nan, with a `DegenerateKernelWarning`.

        Raises:
            ValueError: for labels of a wrong shape or out of range, or another centering; TypeError for another type.
        """
        require_centering(centering)
        n = self.norms.shape[1]
        if not isinstance(y, Tensor):
            y = torch.as_tensor(np.asarray(y))
        classes = y.shape[1] if y.dim() == 2 else int(y.max()) + 1 if y.numel() else 1
        if outputs not in ("all", "trace"):
            raise ValueError(f'outputs: expected "all" or "trace", got {outputs!r}')
        labels = Labels(OutputSelection(outputs, classes), y, n, centering)
        centered = labels.centered.reshape(n, classes).numpy()
        names = [f"layer{layer}" for layer in self.layers.tolist()]
        found = [
            AlignmentNumbers.of(
                RoundingBound(f"kernel of {name}", relative=0.0),
                _moments(norms, lost, centered, outputs, centering),
                labels,
            )
            for name, norms, lost in zip(names, self.norms, self.lost, strict=True)
        ]
        scale = torch.from_numpy(np.exp(self.log_scale))
        return AlignmentReport(
            layers=names,
            statistics={
                "cka": torch.tensor([numbers.cka for numbers in found], dtype=torch.float64),
                "centered_norm": torch.tensor([numbers.norm for numbers in found], dtype=torch.float64) * scale,
                "trace": torch.tensor([numbers.trace for numbers in found], dtype=torch.float64) * scale,
            },
            n=n,
            outputs=outputs,
            centering=centering,
            precision="highest",
        )


def layer_kernels(
    network: Network, x: Any, depth: int, layers: Sequence[int] | NDArray[np.int64] | None = None
) -> LayerKernels:
    """Tangent kernels of the layers of a network of infinite width and given depth.

    Takes about 100 n^2 bytes a layer.

    Args:
        network: at initialisation.
        x: [n, ...] samples, an array or a tensor.
        depth: L, the number of layers with weights.
        layers: counted from 1; None: all.

    Raises:
        ValueError: if an argument is out of range or not finite, or variances leave the range of a float.
    """
    depth = require_depth(depth)
    wanted = layers_within(depth, layers)
    found = propagate(network, InputPairs.of_inputs(x), np.union1d(wanted, last_layers([depth])))
    chosen = np.isin(found.layers, wanted)
    sign, log = (part[chosen] for part in found.log_backward_information(depth))
    own = np.diagonal(log, axis1=1, axis2=2)
    excess = log - (own[:, :, None] + own[:, None, :]) / 2  # log of the correlation of gradients
    forward_gamma = found.forward_gamma[chosen]
    scale = np.ones(len(wanted))
    if network.branch_scale is not None:
        scale[(wanted > 1) & (wanted < depth)] = network.branch_scale**2
    moment = found.moments[0][chosen][:, :, 0]
    log_norms = (np.log(scale[:, None] * moment) + found.log_input_growth[chosen][:, None] + own) / 2
    greatest = log_norms.max(axis=1)
    return LayerKernels(
        depth,
        wanted,
        forward=found.forward_information()[chosen],
        backward=scale[:, None, None] * sign * np.exp(log),
        norms=np.exp(log_norms - greatest[:, None]),
        log_scale=2 * greatest,
        lost=np.where(
            sign > 0,
            forward_gamma - (1 - forward_gamma) * np.expm1(excess),
            1 - (1 - forward_gamma) * sign * np.exp(excess),
        ),
    )


def _moments(
    norms: Array, lost: Array, centered: Array, outputs: Literal["all", "trace"], centering: Centering
) -> Moments:
    """<K, Y~ Y~^T>, ||C K C||_F^2, trace and sum, for k = norms norms' (1 - lost) and targets Y~ [n, o].

    K is k (x) I over pairs of samples and outputs, with the vector of all targets, or o k over samples. The constant
    part of k goes out before anything is squared.
    """
    o = centered.shape[1]
    mean = norms.mean()
    deviation = norms - mean
    outer = np.outer(norms, norms)
    gap = outer * lost
    along = deviation @ centered + mean * centered.sum(axis=0)
    inner = float((along**2).sum() - (centered * (gap @ centered)).sum())
    means = gap.mean(axis=0)
    around = np.outer(deviation, deviation) - (gap - means[:, None] - means[None, :] + means.mean())
    square, trace, total = float((around**2).sum()), float(o * (norms**2).sum()), float(o * (outer - gap).sum())
    if outputs == "trace":
        inner, square = o * inner, o**2 * square
    elif centering == "per_output":
        square = o * square
    else:
        square += float((o - 1) * ((outer - gap) ** 2).sum())
    return Moments(*(torch.tensor(number, dtype=torch.float64) for number in (inner, square, trace, total)))
