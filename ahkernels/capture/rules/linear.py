"""The rule for nn.Linear.

On inputs [n, ..., d] it has z = W a + b at each position. So the gradient of W is g a^T, and the gradient of b is g.
For the kernel it does not matter whether the weight is stored as W or as W^T.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class LinearRule:
    """At each position, a is the input and g the gradient at the output."""

    def parameters(self, module: nn.Module) -> list[str]:
        """Lists weight, and bias where there is one."""
        return ["weight", "bias"] if self.has_bias(module) else ["weight"]

    def record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Keeps the input [n, ..., d]; None if it has no dimension of samples, or words instead of numbers."""
        (a,) = (*args, *kwargs.values())
        return a if a.dim() >= 2 and a.is_floating_point() else None

    def factors(self, module: nn.Module, recorded: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Reshapes to a [n, p, d] and g [r, n, p, m], with all dimensions but samples and features as positions."""
        a = recorded.reshape(recorded.shape[0], -1, recorded.shape[-1])
        return a, gradient.reshape(*gradient.shape[:2], -1, gradient.shape[-1])

    def has_bias(self, module: nn.Module) -> bool:
        """Tells whether the module has a bias."""
        return getattr(module, "bias", None) is not None


RULES = {nn.Linear: LinearRule()}
