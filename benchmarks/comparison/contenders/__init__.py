"""One module for each contender: TITLE, REQUIREMENTS, VARIANTS, unable() and prepare(); ESTIMATES = True if inexact."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from comparison.tasks import Task

UNIT = "ours"  # the contender that ratios are taken to


@dataclass(frozen=True)
class Contender:
    """What the runner knows of a contender, without its library."""

    name: str
    module: ModuleType

    @property
    def title(self) -> str:
        return self.module.TITLE

    @property
    def requirements(self) -> tuple[str, ...]:
        return self.module.REQUIREMENTS

    @property
    def variants(self) -> tuple[str, ...]:
        return self.module.VARIANTS

    @property
    def estimates(self) -> bool:
        """Whether its value has an error that it states."""
        return getattr(self.module, "ESTIMATES", False)

    @property
    def root(self) -> Path:
        """The folder to import the module from."""
        return Path(self.module.__file__).resolve().parents[self.module.__name__.count(".")]

    def unable(self, task: Task, variant: str) -> str | None:
        return self.module.unable(task, variant)


def discover(package: str = __name__) -> list[Contender]:
    """Every module of the package, ours first."""
    folder = importlib.import_module(package)
    names = sorted(
        (one.name for one in pkgutil.iter_modules(folder.__path__)), key=lambda name: (not name.startswith(UNIT), name)
    )
    return [Contender(name, importlib.import_module(f"{package}.{name}")) for name in names]
