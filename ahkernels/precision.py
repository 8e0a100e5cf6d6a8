"""The `precision` argument."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

Precision: TypeAlias = Literal["highest", "high", "medium"]


def resolve_precision(precision: str | None) -> str:
    """The given precision, or that of torch.get_float32_matmul_precision().

    "highest" is fp32 quality, "high" fp32 as a sum of two bf16 or TF32 parts where the device gains by it (else as
    "highest"), "medium" bf16 products with fp32 sums where the device has them (else as "highest"). float64 factors
    are always computed in float64.

    Raises:
        ValueError: for anything else.
    """
    if precision is None:
        return str(torch.get_float32_matmul_precision())
    if precision not in ("highest", "high", "medium"):
        raise ValueError(f'precision: expected "highest", "high", "medium" or None, got {precision!r}')
    return precision
