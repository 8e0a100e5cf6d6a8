"""The kernels for AMX on processors without it: compiled as they are, with their tile registers emulated."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import ahkernels as ah

CAPABILITIES = ah.build_info()["cpu_capability"]
ROOT = Path(__file__).parent.parent
# The source to link with a program, or nothing where the kernels for AMX are not compiled.
EMULATOR = [str(ROOT / "python_tests" / "emulator" / "amx.cpp")] if platform.machine() == "x86_64" else []
# Why there is nothing to emulate, or nothing.
MISSING = (
    "this processor has AMX itself"
    if "amx" in CAPABILITIES
    else ""
    if "avx512bf16" in CAPABILITIES
    else "needs AVX-512 and its bf16 instructions, which the kernels for AMX have beside those of AMX"
)


def build(target: Path, *options: str) -> Path:
    """Compiles the emulator, as a library to be loaded before the extension, or with a program."""
    compiler = os.environ.get("CXX", "c++").split()
    always = ("-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}")
    subprocess.run([*compiler, *always, *EMULATOR, *options, "-o", str(target)], check=True)
    return target


def environment(library: Path) -> dict[str, str]:
    """In which a process takes the kernels for AMX."""
    return {**os.environ, "LD_PRELOAD": str(library), "AHKERNELS_CPU_CAPABILITY": "amx"}
