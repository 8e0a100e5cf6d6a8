"""The parts of a structure of tensors, with the names that they have in messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def named_parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The values of a mapping, tuple or list, each with the expression that takes it; nothing of anything else."""
    if isinstance(value, Mapping):
        yield from ((f"{name}[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (tuple, list)):
        yield from ((f"{name}[{place}]", part) for place, part in enumerate(value))
