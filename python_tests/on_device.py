"""Functions of CPU tensors that run on another device: the CPU's test cases with the CPU's tolerances."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def moved(value: Any, device: str) -> Any:
    """Tensors in lists and tuples to a device, with their strides."""
    if isinstance(value, Tensor):
        return value.to(device)
    if hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(moved(item, device) for item in value))
    return type(value)(moved(item, device) for item in value) if isinstance(value, (list, tuple)) else value


class OnDevice:
    """The functions of a module with their tensors on a device, and the results back on the CPU."""

    def __init__(self, module: ModuleType, device: str) -> None:
        self.module, self.device = module, device

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.module, name)

        def call(*arguments: Any) -> Any:
            return moved(function(*moved(arguments, self.device)), "cpu")

        return call


def devices() -> list[str]:
    """Devices beside the CPU that kernels were built for and that are here."""
    return ["cuda"] if torch.cuda.is_available() else []
