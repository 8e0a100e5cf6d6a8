"""Kernel batches from plain tensors, as the ops take them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ahkernels.ops import KernelBatch


def one_layer(forward: Tensor, backward: Tensor, bias: float, by_jacobian: bool = False) -> KernelBatch:
    """A kernel of one layer."""
    return KernelBatch([forward], [backward], [bias], [by_jacobian], [1])


def kernels(*layers_of_kernels: Sequence[tuple]) -> KernelBatch:
    """Kernels, each a list of layers (forward, backward, bias) or (forward, backward, bias, by_jacobian)."""
    layers = [(*one, False)[:4] for of_kernel in layers_of_kernels for one in of_kernel]
    forward, backward, bias, by_jacobian = (list(part) for part in zip(*layers, strict=True))
    return KernelBatch(forward, backward, bias, by_jacobian, [len(of_kernel) for of_kernel in layers_of_kernels])
