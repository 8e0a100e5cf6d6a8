"""One module for each contender: TITLE, REQUIREMENTS and prepare().

Where there are any, VARIANTS names the ways in which it does the job, and unable() says why it cannot. ESTIMATES = True
says that its value has an error that it states, BY_HAND = True that it is a user's own code of the Hadamard form rather
than a library.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType

from benchmarks.comparison.tasks import Task

UNIT = "ours"  # the contender that ratios are taken to


@dataclass(frozen=True)
class Contender:
    """A contender as the runner knows it, without its library."""

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
        return getattr(self.module, "VARIANTS", ("",))

    @property
    def estimates(self) -> bool:
        """Whether its value has an error that it states."""
        return getattr(self.module, "ESTIMATES", False)

    @property
    def by_hand(self) -> bool:
        """Whether it is a user's own code of the Hadamard form, rather than a library's way."""
        return getattr(self.module, "BY_HAND", False)

    def unable(self, task: Task, variant: str) -> str | None:
        """Why not, where the module can tell without trying."""
        return self.module.unable(task, variant) if hasattr(self.module, "unable") else None


def discover(package: str = __name__) -> list[Contender]:
    """Every module of the package, ours first; names with an underscore are shared code."""
    folder = importlib.import_module(package)
    names = [one.name for one in pkgutil.iter_modules(folder.__path__) if not one.name.startswith("_")]
    names.sort(key=lambda name: (not name.startswith(UNIT), name))
    return [Contender(name, importlib.import_module(f"{package}.{name}")) for name in names]
