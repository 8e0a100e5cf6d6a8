"""What a report says of its certificate: how well what was captured agreed with autograd."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Certificate:
    """How well what was captured of each layer agreed with autograd, and when that was looked at.

    Attributes:
        differences: For each layer, the largest difference | ||J^T v|| - ||J^T v||' | between what was captured and
            autograd, for random weights v on the outputs, relative to sqrt(sum over samples of ||J_x^T v_x||^2), which
            is sqrt(tr K) on average, or to the largest gradient where it is no more than the rounding of that; nan for
            a layer with nan or inf.
        calls_ago: How many calls for a model of the same structure ago; 0 for the very call that gave the report.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 3
        >>> certificate = ah.layerwise_alignment(model, x, y).certificate
        >>> certificate.calls_ago, max(certificate.differences.values()) < 1e-5
        (0, True)
    """

    differences: dict[str, float]
    calls_ago: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON; a difference that is not finite becomes None."""
        return {
            "differences": {name: one if math.isfinite(one) else None for name, one in self.differences.items()},
            "calls_ago": self.calls_ago,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Certificate:
        """The certificate that `to_dict` gave.

        Raises:
            ValueError: For anything else.
        """
        try:
            found = {str(name): math.nan if one is None else float(one) for name, one in state["differences"].items()}
            return cls(found, int(state["calls_ago"]))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(
                f"certificate: expected {{differences: {{layer: number}}, calls_ago: number}}, got {state!r}"
            ) from None
