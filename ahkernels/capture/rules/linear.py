"""nn.Linear on [n, ..., d]: z = W a + b at each position, so that the gradient of W is g a^T and that of b is g."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class LinearRule:
    """a is the layer's input and g the gradient at its output, at each position."""

    def parameters(self, module: nn.Module) -> list[str]:
        """Weight, and bias where there is one."""
        return ["weight"] if module.bias is None else ["weight", "bias"]

    def record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The input [n, ..., d]; None where it has no dimension of samples."""
        (a,) = (*args, *kwargs.values())
        return a if a.dim() >= 2 else None

    def factors(self, module: nn.Module, recorded: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Input and gradient, with all that lies between samples and features as positions."""
        a = recorded.reshape(recorded.shape[0], -1, recorded.shape[-1])
        return a, gradient.reshape(*gradient.shape[:2], -1, gradient.shape[-1])

    def has_bias(self, module: nn.Module) -> bool:
        """Whether the Linear has a bias."""
        return module.bias is not None


RULES = {nn.Linear: LinearRule()}
