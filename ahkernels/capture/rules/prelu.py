"""The rule for nn.PReLU, whose parameter scales the negative part of the input, as that of a norm does its input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ahkernels.capture.rules.norms import NormRule


def _negative_part(module: Any, x: Tensor) -> Tensor:
    return x.clamp(max=0)


RULES = {nn.PReLU: NormRule(_negative_part, by_channel=True)}
