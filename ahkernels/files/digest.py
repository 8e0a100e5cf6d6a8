"""Digests that files carry, so that one that has changed since it was written is refused and not believed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

DIGEST = "digest"  # what the entry, column or array is called that has it
_PREFIX = "sha256:"  # no cell with it reads as a number
_DIGITS = 16


def digest_of(parts: Iterable[str | bytes | memoryview]) -> str:
    """16 hexadecimal digits of a hash over the parts and their lengths, after "sha256:"."""
    digest = hashlib.sha256()
    for part in parts:
        data = memoryview(part.encode() if isinstance(part, str) else part)
        digest.update(data.nbytes.to_bytes(8, "little"))
        digest.update(data)
    return f"{_PREFIX}{digest.hexdigest()[:_DIGITS]}"


def require_digest(found: object, parts: Iterable[str | bytes | memoryview]) -> None:
    """Checks a digest that was read beside what it is of.

    Raises:
        ValueError: If there is none, or it is that of something else.
    """
    if found is None:
        raise ValueError(f"it has no {DIGEST}, without which damage would go unnoticed")
    if found != digest_of(parts):
        raise ValueError(f"it has changed since it was written, as its {DIGEST} tells")


def bits_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on any device, in the order of its elements."""
    bits: memoryview = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return bits
