"""Deviations of a kernel's tangent features from those of mean factors: what near-constant kernels are computed from.

With any a0 and g0, here means over the samples, the features sum_s a_s (x) g_s of a layer less sum_s a0_s (x) g0_s are

    sum_s a'_s (x) g_s + a0_s (x) g'_s        a' = a - a0, g' = g - g0,

the features of factors with twice as many positions. Their kernel differs from K by a constant for each two outputs and
by terms that depend on one sample alone. Centering per output removes both, and its digits are those of the deviations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ahkernels.ops.arguments import require_batch, require_factor_means
from ahkernels.ops.batch import KernelBatch


def deviations(batch: KernelBatch, forward_means: Sequence[Tensor], backward_means: Sequence[Tensor]) -> KernelBatch:
    """The factors of the deviations, in the dtype of tiles and without biases.

    Args:
        batch: The kernels.
        forward_means: a0 of each layer, float64 [s, d], with the digits of the dtype of tiles.
        backward_means: g0 of each layer, float64 [s, o, m], likewise.

    Raises:
        RuntimeError: Unless there are such means for each layer; the message names the argument.
    """
    require_batch("deviations", batch)
    require_factor_means("deviations", batch, forward_means, backward_means)
    forward, backward = [], []
    means = zip(batch.forward, batch.backward, batch.bias, forward_means, backward_means, strict=True)
    for a, g, bias, a0, g0 in means:
        dtype = torch.promote_types(a.dtype, torch.float32)
        a, g, a0, g0 = a.to(dtype), g.to(dtype), a0.to(dtype), g0.to(dtype)
        if bias:  # one more input, which is the same in all samples
            a0 = functional.pad(a0, (0, 1), value=bias**0.5)
            a = functional.pad(a, (0, 1), value=bias**0.5)
        forward.append(torch.cat((a - a0, a0.expand_as(a)), 1))
        backward.append(torch.cat((g, g - g0), 1))
    return batch._replace(forward=forward, backward=backward, bias=[0.0] * len(forward))
