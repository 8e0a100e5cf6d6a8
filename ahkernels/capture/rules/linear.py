"""nn.Linear on inputs [n, d]: z = W a + b, so that dz^T enters the gradient of W as g a^T and of b as g."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class LinearRule:
    """a is the layer's input and g the gradient at its output."""

    def parameters(self, module: nn.Module) -> list[str]:
        """Weight, and bias where there is one."""
        return ["weight"] if module.bias is None else ["weight", "bias"]

    def forward_factor(self, module: nn.Module, inputs: tuple[Any, ...], name: str) -> Tensor:
        """The input [n, d]; raises NotImplementedError where it has more or fewer dimensions."""
        (a,) = inputs
        if a.dim() != 2:
            raise NotImplementedError(
                f"layers: expected an input [n, d] to the Linear {name!r}, got {list(a.shape)}; inputs with more "
                "dimensions have no rule yet: leave the layer out with layers="
            )
        result: Tensor = a
        return result

    def backward_factor(self, module: nn.Module, gradient: Tensor) -> Tensor:
        """The gradients as they are."""
        return gradient

    def has_bias(self, module: nn.Module) -> bool:
        """Whether the Linear has a bias."""
        return module.bias is not None
