"""Packages that only some functions need."""

from __future__ import annotations

import importlib
from types import ModuleType


def optional_import(module: str, what: str, install: str) -> ModuleType:
    """Imports a module that `what` needs.

    Raises:
        ImportError: If it is not installed; the message says what needs it and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module.partition('.')[0]}: {install}") from error
