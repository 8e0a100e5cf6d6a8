"""Prints how ahkernels was built and what this machine gives it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform

import torch

import ahkernels as ah
from ahkernels.table import Column, text_table

_PACKAGES = ("numpy", "scipy", "matplotlib", "pandas", "xarray", "safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(arguments: argparse.Namespace) -> None:
    """Prints a line for each fact."""
    facts = {
        "ahkernels": ah.__version__,
        **{name.replace("_", " "): _plain(value) for name, value in ah.build_info().items()},
        "Python": platform.python_version(),
        "processors": f"{os.cpu_count()}, of which torch uses {torch.get_num_threads()}",
        "devices": ", ".join(_devices()),
        **{name: _version(name) for name in _PACKAGES},
    }
    print(text_table([Column("fact", list(facts), "left"), Column("value", list(facts.values()), "left")], rule=True))


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {one}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _devices() -> list[str]:
    return ["cpu", *(f"cuda:{one} ({torch.cuda.get_device_name(one)})" for one in range(torch.cuda.device_count()))]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
