"""A fault that a person might make, as a change of a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A fault that tests should notice.

    Attributes:
        name: Its name.
        file: The file that it is in, from the root of the repository.
        text: What stands there, once in the file. In csrc/cpu it is an expression, since all mutants of the extension
            are compiled together and chosen as the tests run; but not in the kernels for AMX, which a test compiles.
        replacement: What stands there instead: in csrc/cpu an expression of the same type.
        fault: What is wrong then.
        tests: Files and tests that should notice, the likeliest first.
        unnoticed: Why no test notices it, where none should; otherwise empty.
    """

    name: str
    file: str
    text: str
    replacement: str
    fault: str
    tests: tuple[str, ...]
    unnoticed: str = ""

    @property
    def compiled(self) -> bool:
        """Whether it is in the extension."""
        return self.file.startswith(("csrc/cpu/", "csrc/tiling.h")) and self.file != "csrc/cpu/isa/tile_amx.cpp"
