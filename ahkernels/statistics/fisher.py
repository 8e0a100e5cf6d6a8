"""The Fisher information of a softmax classifier in function space (appendix G.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ahkernels.kernel import TangentKernel, require_kernel


def fisher_kernel(kernel: TangentKernel, logits: Tensor) -> TangentKernel:
    """H^(1/2) K H^(1/2) with H = blockdiag(diag(p) - p p^T), p = softmax of each sample's logits.

    It has the same nonzero eigenvalues as the Fisher information Psi H Psi^T of the layer's parameters under
    cross-entropy, summed over samples. No K is formed: the gradients of each sample are multiplied by its H^(1/2).

    Args:
        kernel: A tangent kernel over all outputs of the network (`outputs` "all").
        logits: The network's outputs f(x), [n, o].

    Raises:
        TypeError: If the kernel is no tangent kernel, or the logits are no tensor.
        ValueError: For a kernel over other outputs, or logits of another shape or with nan or inf.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x = torch.randn(20, 4)
        >>> fisher = ah.fisher_kernel(ah.tangent_kernels(model, x)["0"], model(x))
        >>> fisher.shape, ah.eigenvalues(fisher, 1, centering=None) > 0
        (torch.Size([60, 60]), tensor([True]))
    """
    require_kernel("kernel", kernel)
    if kernel.outputs.spec != "all":
        raise ValueError(f'kernel: expected one over all outputs ("all"), got outputs = {kernel.outputs.spec!r}')
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits: expected a tensor [n, o], got {type(logits).__name__}")
    if tuple(logits.shape) != (kernel.n, kernel.o):
        raise ValueError(f"logits: expected shape [n, o] = [{kernel.n}, {kernel.o}], got {list(logits.shape)}")
    return kernel.congruence(fisher_roots(logits))


def fisher_roots(logits: Tensor) -> Tensor:
    """H^(1/2) of each sample, float64 [n, o, o], for finite logits [n, o]; the same for all layers."""
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("logits: expected finite numbers, got nan or inf")
    p = logits.detach().double().softmax(1)
    values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    roots: Tensor = (vectors * values.clamp(min=0).sqrt().unsqueeze(1)) @ vectors.mT
    return roots
