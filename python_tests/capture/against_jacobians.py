"""Kernels of all layers of a model against their Jacobians by torch.func in fp64."""

from __future__ import annotations

from typing import Any

import reference
from torch import Tensor, nn

import ahkernels as ah


def check(model: nn.Module, x: Tensor, layers: dict[str, list[str]] | None = None, outputs: Any = "all") -> set[str]:
    """Kernels of all layers against their Jacobians; returns the names of the layers that take the fallback."""
    model = model.double().eval()
    expected = reference.jacobians(model, x, layers)
    kernels = ah.tangent_kernels(model, x, outputs=outputs)
    assert set(kernels) == set(expected)
    for layer, kernel in kernels.items():
        dense = reference.kernels_of_outputs(expected[layer], outputs)
        assert float(dense.norm()) > 0
        assert (kernel.to_dense() - dense).norm() <= 1e-10 * dense.norm(), layer
    return {one.layer for one in ah.explain(model, x) if one.route == "fallback"}
