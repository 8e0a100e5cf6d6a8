"""Numbers on a device that are copied to the host together, so that it waits for them once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Readings:
    """Float64 numbers that nothing waits for until the first of them is asked for: then all come in one copy."""

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self._found: list[Tensor] = []

    def add(self, numbers: Tensor) -> Callable[[], Tensor]:
        """Returns what gives the same numbers on the CPU."""
        self._waiting.append(numbers.detach().double())
        place = len(self._found) + len(self._waiting) - 1

        def read() -> Tensor:
            if place >= len(self._found):
                self._read()
            return self._found[place]

        return read

    def _read(self) -> None:
        sizes = [one.numel() for one in self._waiting]
        parts = torch.split(torch.cat([one.flatten() for one in self._waiting]).cpu(), sizes)
        self._found += [part.view(one.shape) for part, one in zip(parts, self._waiting, strict=True)]
        self._waiting.clear()
