"""The Fisher information of a softmax classifier in function space (appendix G.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ahkernels.kernel import TangentKernel, require_kernel


def fisher_kernel(kernel: TangentKernel, logits: Tensor) -> TangentKernel:
    """H^(1/2) K H^(1/2) with H = blockdiag(diag(p) - p p^T), p = softmax of each sample's logits.

    It has the nonzero eigenvalues of the Fisher information Psi H Psi^T of the layer's parameters under cross-entropy,
    summed over samples. No K is formed: each sample's gradients are multiplied by its H^(1/2).

    Args:
        kernel: A tangent kernel over all outputs of the network ("all").
        logits: The network's outputs f(x), [n, o].

    Raises:
        TypeError: for a kernel that is none, or logits that are no tensor.
        ValueError: for a kernel over other outputs, or logits of another shape or with nan or inf.
    """
    require_kernel("kernel", kernel)
    if kernel.outputs.spec != "all":
        raise ValueError(f'kernel: expected one over all outputs ("all"), got outputs = {kernel.outputs.spec!r}')
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits: expected a tensor [n, o], got {type(logits).__name__}")
    if tuple(logits.shape) != (kernel.n, kernel.o):
        raise ValueError(f"logits: expected shape [n, o] = [{kernel.n}, {kernel.o}], got {list(logits.shape)}")
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("logits: expected finite numbers, got nan or inf")
    p = logits.detach().double().softmax(1)
    values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    return kernel.congruence((vectors * values.clamp(min=0).sqrt().unsqueeze(1)) @ vectors.mT)
