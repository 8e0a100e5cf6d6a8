"""Builds ahkernels._C: the ops on torch's stable ABI, and a pybind11 module of build facts.

The build needs a C++20 compiler and the headers of one torch; what it makes runs under any torch from STABLE_ABI on.
"""

import os
import shutil
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from torch.utils.cpp_extension import TORCH_LIB_PATH, BuildExtension, include_paths

ROOT = Path(__file__).parent
STABLE_ABI = (2, 11)  # the oldest torch that has every stable function in use


def require_compiler() -> None:
    """Stop with one sentence where there is no C++ compiler, before a screenful of build log says so."""
    command = os.environ.get("CXX", "c++" if shutil.which("c++") else "g++").split()[0]
    if shutil.which(command) is None:
        sys.exit(
            f"ahkernels: no C++ compiler ('{command}' is not on the PATH): install one with C++20, such as g++ 11 or "
            "clang 14 or later (Debian and Ubuntu: 'apt install g++'; conda: 'conda install cxx-compiler'), or name "
            "it in CXX."
        )


def extension() -> Extension:
    """The CPU ops; what needs AVX2 or AVX-512 names them in its own source, so one build serves every processor."""
    major, minor = STABLE_ABI
    return Extension(
        "ahkernels._C",
        sources=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.cpp"))],
        depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.[hi]*"))],
        library_dirs=[TORCH_LIB_PATH],
        libraries=["c10", "torch", "torch_cpu"],
        define_macros=[
            ("TORCH_TARGET_VERSION", f"0x{major:02x}{minor:02x}000000000000ULL"),
            ("AHK_TORCH_TARGET", f"{major}.{minor}"),
        ],
        extra_compile_args=[
            "-std=c++20",
            "-O3",
            "-Wall",
            "-Wextra",
            "-fvisibility=hidden",
            "-g0",
            *(f"-isystem{path}" for path in [*include_paths(), pybind11.get_include()]),
            *os.environ.get("AHKERNELS_SANITIZE", "").split(),
        ],
        extra_link_args=os.environ.get("AHKERNELS_SANITIZE", "").split(),
        language="c++",
    )


require_compiler()
setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})
