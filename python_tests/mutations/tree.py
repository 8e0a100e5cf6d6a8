"""A copy of the repository that mutants are planted in.

Mutants of Python and of the CUDA kernels, which the tests compile for their emulator, are written to a file of the copy
and taken out again. Those of the extension are compiled into it once, all of them together: in the place of each stands
a choice between its text and its replacement, which a variable of the environment makes as the tests run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from python_tests.mutations.mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]
CHOICE = "AHKERNELS_MUTANT"
# Stands at the begin of the header that all sources of the extension include.
CHOOSING_HEADER = "csrc/tiling.h"
CHOOSING = f"""#include <cstdlib>
#include <string_view>
static inline bool ahkernels_mutant(std::string_view name) {{
  static const char* const chosen = std::getenv("{CHOICE}");
  return chosen != nullptr && chosen == name;
}}
"""


class Tree:
    """The copy, in a folder that stays, so that a second run compiles nothing anew.

    Args:
        folder: Where it is.
        mutants: All mutants.
    """

    def __init__(self, folder: Path, mutants: Sequence[Mutant]) -> None:
        self._folder = folder
        self._compiled = [one for one in mutants if one.compiled]

    def update(self) -> None:
        """Makes the copy like the repository again, also after an interruption, and builds what has changed."""
        contents = {name: (ROOT / name).read_bytes() for name in _files()}
        for name in dict.fromkeys([CHOOSING_HEADER, *(one.file for one in self._compiled)]):
            text = contents[name].decode()
            for one in self._compiled:
                if one.file == name:
                    text = text.replace(
                        one.text, f'(ahkernels_mutant("{one.name}") ? ({one.replacement}) : ({one.text}))'
                    )
            contents[name] = (CHOOSING + text if name == CHOOSING_HEADER else text).encode()
        for path in self._folder.rglob("*"):
            name = str(path.relative_to(self._folder))
            if path.is_file() and name not in contents and not name.startswith("build/") and path.suffix != ".so":
                path.unlink()
        for name, content in contents.items():
            path = self._folder / name
            if not path.exists() or path.read_bytes() != content:  # otherwise it would be compiled again
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        environment = os.environ | {"AHKERNELS_CUDA": "off"}
        built = subprocess.run(command, cwd=self._folder, env=environment, capture_output=True, text=True)
        if built.returncode:
            sys.exit(
                f"mutations: expected an extension with all mutants, got errors of the build:\n{built.stdout[-4000:]}"
            )

    @contextmanager
    def planted(self, mutant: Mutant | None) -> Iterator[dict[str, str]]:
        """Has a mutant in the copy, or none; the environment that the tests are to have."""
        environment = os.environ | {"PYTHONPATH": str(self._folder), "PYTHONDONTWRITEBYTECODE": "1"}
        if mutant is None or mutant.compiled:
            yield environment | ({} if mutant is None else {CHOICE: mutant.name})
            return
        path = self._folder / mutant.file
        text = path.read_text()
        path.write_text(text.replace(mutant.text, mutant.replacement))
        try:
            yield environment
        finally:
            path.write_text(text)


def _files() -> list[str]:
    """What git knows, and what it would know once it is added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in found if name and (ROOT / name).is_file()]
