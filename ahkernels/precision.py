"""The `precision` argument."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import torch

Precision: TypeAlias = Literal["highest", "high", "medium"]


def resolve_precision(precision: str | None) -> str:
    """The given precision, or for None that of torch.get_float32_matmul_precision().

    float64 factors are always computed in float64. For the others,

    - "highest" has the quality of fp32;
    - "high" splits each fp32 number into two bf16 or TF32 parts where the device gains by it, and otherwise is
      "highest";
    - "medium" multiplies bf16 numbers and sums in fp32 where the device has such products, and otherwise is "highest".

    Raises:
        ValueError: For anything else.
    """
    if precision is None:
        return str(torch.get_float32_matmul_precision())
    if precision not in ("highest", "high", "medium"):
        raise ValueError(f'precision: expected "highest", "high", "medium" or None, got {precision!r}')
    return precision


def coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The floating-point dtype with the fewest digits."""
    return max(dtypes, key=lambda one: torch.finfo(one).eps)
