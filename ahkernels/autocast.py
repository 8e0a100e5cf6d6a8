"""Autocast regions: a measurement inside of one calls the model in it, and computes all else outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

DEVICES = ("cpu", "cuda", "xpu")


@contextmanager
def without_autocast() -> Iterator[None]:
    """Leaves all autocast regions of this thread for a while; a function can be decorated with it."""
    regions = [device for device in DEVICES if torch.is_autocast_enabled(device)]
    with ExitStack() as stack:
        for device in regions:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
