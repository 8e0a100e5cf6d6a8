"""Tangent kernels of layers of infinite width, and their alignment with labels at initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahkernels.centering import Centering, require_centering
from ahkernels.ops.moments import KernelMoments
from ahkernels.outputs import OutputSelection
from ahkernels.report import AlignmentReport
from ahkernels.samples import Samples
from ahkernels.signal_propagation.inputs import InputPairs
from ahkernels.signal_propagation.network import Network
from ahkernels.signal_propagation.propagation import last_layers, layers_within, propagate, require_depth
from ahkernels.statistics.alignment_numbers import AlignmentNumbers
from ahkernels.statistics.degenerate import RoundingBound
from ahkernels.statistics.degenerate_warning import OneWarning
from ahkernels.statistics.labels import Labels

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerKernels:
    """The tangent kernels of layers of a network of infinite width, over n samples.

    As the width grows, the tangent kernel of a layer's weights over (sample, output) pairs, divided by the fan-in,
    converges to K_l = k_l (x) I. The n x n kernel k_l is the Hadamard product of forward and backward information
    (equation 9). The tangent kernel of the biases, divided by the fan-in, converges to 0.

    Attributes:
        depth: The depth L of the network.
        layers: Layer numbers [k], counted from 1.
        forward: Forward information I^f_l, [k, n, n].
        backward: Backward information N I^b_l, [k, n, n], in residual branches times the square of their scale.
        norms: The square root of the diagonal of k_l / e^log_scale, [k, n].
        log_scale: Logarithms [k] for which the greatest norm is 1, since kernels may be out of the range of a float.
        lost: 1 - k_l(x, x') / sqrt(k_l(x, x) k_l(x', x')), [k, n, n]. It keeps relative accuracy where k_l is nearly
            constant.

    Example:
        >>> import numpy as np
        >>> from ahkernels import signal_propagation as sp
        >>> kernels = sp.layer_kernels(sp.Network("relu"), np.eye(4, 3) + 1, depth=5)
        >>> kernels.tangent().shape
        (5, 4, 4)
        >>> report = kernels.alignment(np.array([0, 1, 0, 1]))
        >>> report.peak, round(report["layer1"], 4)
        ('layer1', 0.1869)
    """

    depth: int
    layers: NDArray[np.int64]
    forward: Array
    backward: Array
    norms: Array
    log_scale: Array
    lost: Array

    def tangent(self) -> Array:
        """Computes k_l, [k, n, n], which overflows where `log_scale` is beyond the range of a float."""
        scale = np.exp(self.log_scale)[:, None, None]
        return scale * self.norms[:, :, None] * self.norms[:, None, :] * (1 - self.lost)

    def alignment(
        self, y: Tensor, outputs: Literal["all", "trace"] = "all", *, centering: Centering = "global"
    ) -> AlignmentReport:
        """Measures the centered kernel alignment of every K_l with the labels (equation 7).

        Args:
            y: Class indices [n], with as many outputs as classes, or a target matrix [n, o].
            outputs: "all" for K_l over (sample, output) pairs, or "trace" for its sum over outputs, n x n. Networks of
                finite width come closer to the sum, since kernels between different outputs, which are 0 here, do not
                enter it.
            centering: "global" or "per_output"; see `ahkernels.cka`.

        Returns:
            A report whose layers are "layer1", ..., with norms and traces of K_l. A layer whose centered kernel is zero
            has nan, with a `DegenerateKernelWarning`.

        Raises:
            ValueError: If labels have a wrong shape or are out of range, or for another centering or other outputs.
            TypeError: If labels have another type.
        """
        require_centering(centering)
        n = self.norms.shape[1]
        if not isinstance(y, Tensor):
            y = torch.as_tensor(np.asarray(y))
        classes = y.shape[1] if y.dim() == 2 else int(y.max()) + 1 if y.numel() else 1
        if outputs not in ("all", "trace"):
            raise ValueError(f'outputs: expected "all" or "trace", got {outputs!r}')
        labels = Labels(OutputSelection(outputs, classes), y, Samples(n), centering)
        centered = labels.centered.reshape(n, classes).numpy()
        names = [f"layer{layer}" for layer in self.layers.tolist()]
        found = [
            AlignmentNumbers.of(
                RoundingBound("kernel", name, relative=0.0),
                _moments(norms, lost, centered, outputs, centering),
                labels,
            )
            for name, norms, lost in zip(names, self.norms, self.lost, strict=True)
        ]
        OneWarning().warn(numbers.undefined for numbers in found)
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
    """Computes the tangent kernels of the layers of a network of infinite width (equation 9).

    It takes about 100 n^2 bytes for each layer.

    Args:
        network: The network at initialisation.
        x: Samples [n, ...], an array or a tensor.
        depth: The number L of layers with weights.
        layers: Layer numbers, counted from 1; None for all.

    Returns:
        The kernels of these layers.

    Raises:
        ValueError: If an argument is out of range or not finite, or variances leave the range of a float.
        TypeError: If `network` is not a `Network`.

    Example:
        >>> import numpy as np
        >>> from ahkernels import signal_propagation as sp
        >>> kernels = sp.layer_kernels(sp.Network("relu"), np.eye(2), depth=3, layers=[1, 3])
        >>> print(kernels.tangent().round(3))
        [[[0.5   0.   ]
          [0.    0.5  ]]
        <BLANKLINE>
         [[0.5   0.247]
          [0.247 0.5  ]]]
    """
    depth = require_depth(depth)
    wanted = layers_within(depth, layers)
    found = propagate(network, InputPairs.of_inputs(x), np.union1d(wanted, last_layers([depth])))
    chosen = np.isin(found.layers, wanted)
    sign, log = (part[chosen] for part in found.log_backward_information(depth))
    own = np.diagonal(log, axis1=1, axis2=2)
    excess = log - (own[:, :, None] + own[:, None, :]) / 2  # the logarithm of the gradients' correlation
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
) -> KernelMoments:
    """<K, Y~ Y~^T>, ||C K C||_F^2, the trace and the sum of K, for k = norms norms' (1 - lost).

    Over pairs of samples and outputs, K is k (x) I, and Y~ is the vector of all centered targets. Over samples, K is
    o k, and Y~ is the matrix [n, o] of the targets. The constant part of k is removed before anything is squared.
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
    return KernelMoments(inner, square, trace, total)
