"""A model from the name of what makes it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

_EXPECTED = "MODEL: expected module:function, whose function makes the model without arguments"


def model_factory(name: str) -> Callable[[], nn.Module]:
    """What makes a model, from a name such as "project.models:resnet18".

    Modules are looked for in the working directory first, as `python -m` does.

    Raises:
        ValueError: If there is no such module or function; what it returns is checked once it is called.
    """
    module_name, colon, function = name.partition(":")
    if not colon or not module_name or not function:
        raise ValueError(f"{_EXPECTED}, got {name!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # of the user's own code, too
        raise ValueError(f"{_EXPECTED}, got {name!r}, whose module raises {type(error).__name__}: {error}") from error
    make = getattr(module, function, None)
    if not callable(make):
        raise ValueError(f"{_EXPECTED}, got {name!r}: {module_name} has no such function")

    def made() -> nn.Module:
        try:
            model = make()
        except Exception as error:
            raise ValueError(f"{_EXPECTED}, got {name!r}, which raises {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise ValueError(f"{_EXPECTED}, got {name!r}, which returns {type(model).__name__}")
        return model

    return made
