"""The inner kernels of the CPU ops, compiled without torch: for this machine, and for aarch64 under an emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from emulated_amx import EMULATOR as AMX
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [Path(__file__).with_name("tile_kernels.cpp"), *sorted((ROOT / "csrc/cpu/isa").glob("*.cpp"))]
OPTIONS = ("-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}")
CROSS_COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


def build(program: Path, *compiler: str) -> Path:
    """Compiles the comparison and the kernels that it is about."""
    subprocess.run([*compiler, *OPTIONS, "-O1", *map(str, SOURCES), "-o", str(program)], check=True)
    return program


def run(*command: str, capability: str = "") -> list[str]:
    """The instruction sets that the program finds, if all results agree."""
    environment = {**os.environ, "AHKERNELS_CPU_CAPABILITY": capability}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    *found, summary = done.stdout.splitlines()
    assert summary.startswith("0 disagreements in ")
    return found


def test_every_instruction_set_of_this_processor(tmp_path):
    """And that of AMX, whose tile registers are emulated."""
    program = build(tmp_path / "tile_kernels", *os.environ.get("CXX", "c++").split(), *AMX)
    found = run(str(program))
    assert found[-1] == "portable"
    for capability in found[1:]:
        assert run(str(program), capability=capability)[0] == capability


@pytest.mark.skipif(not (CROSS_COMPILER and EMULATOR), reason="needs g++-aarch64-linux-gnu and qemu-user-static")
def test_aarch64(tmp_path):
    program = build(tmp_path / "tile_kernels", CROSS_COMPILER, "-static")
    assert run(EMULATOR, str(program)) == ["portable"]


@pytest.mark.slow
@pytest.mark.skipif(not CROSS_COMPILER, reason="needs g++-aarch64-linux-gnu")
def test_all_operators_compile_for_aarch64():
    sources = [path for path in sorted((ROOT / "csrc").rglob("*.cpp")) if path.name != "module.cpp"]  # needs Python
    torch = [f"-isystem{path}" for path in include_paths()]
    command = [CROSS_COMPILER, *OPTIONS, "-fsyntax-only", "-fvisibility=hidden", *torch, "-x", "c++", "-"]
    every = "".join(f'#include "{path}"\n' for path in sources)  # at once: torch's headers take most of the time
    subprocess.run([*command, "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"], input=every, text=True, check=True)
