"""Builds ahkernels._C (the ops on torch's stable ABI, and a pybind11 module of build facts) and ahkernels._cuda.

The build needs a C++20 compiler and the headers of one torch; what it makes runs under any torch from STABLE_ABI on.
The CUDA kernels are a library of their own, built where the torch of the build has CUDA and there is an nvcc of the
same major version, and loaded where torch has CUDA. AHKERNELS_CUDA=off leaves it out; with =required, a build that
cannot have it fails; with the path of a library that was built before, that one is taken. It depends on no version of
Python.
"""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup

ROOT = Path(__file__).parent
STABLE_ABI = (2, 11)  # the oldest torch that has every stable function in use
# Among them machine code for 8.x and Hopper (whose matrix instructions need the "a"), and PTX for what comes later.
NVCC_OPTIONS = (ROOT / "csrc" / "cuda" / "nvcc.options").read_text().split()


def cuda_root() -> Path | None:
    """The toolkit of CUDA_HOME or of the nvcc on the PATH, which may be a wrapper that lies elsewhere."""
    nvcc = shutil.which(str(Path(os.environ["CUDA_HOME"], "bin", "nvcc")) if "CUDA_HOME" in os.environ else "nvcc")
    if nvcc is None:
        return None
    root = Path(nvcc).resolve().parents[1]
    if not (root / "include" / "cuda_runtime.h").exists():
        dry_run = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
        found = re.search(r"^#\$ TOP=(.+)$", dry_run, re.MULTILINE)
        root = Path(found[1].strip()).resolve() if found else root
    return root if (root / "include" / "cuda_runtime.h").exists() else None


def cuda_version(root: Path) -> str:
    """Of its nvcc, such as 13.0."""
    text = subprocess.run([root / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else ""


def prebuilt_cuda() -> Path | None:
    """The library that AHKERNELS_CUDA names."""
    mode = os.environ.get("AHKERNELS_CUDA", "auto")
    if mode in ("auto", "off", "required"):
        return None
    library = Path(mode).resolve()
    if not library.is_file():
        sys.exit(f"ahkernels: AHKERNELS_CUDA: expected auto, off, required or the path of a library, got {mode!r}")
    return library


def choose_cuda() -> tuple[Path | None, str]:
    """The toolkit to build with, or None, and without blanks where the library comes from, or why there is none."""
    if prebuilt_cuda() is not None:
        return None, "prebuilt"
    mode = os.environ.get("AHKERNELS_CUDA", "auto")
    root = cuda_root()
    if mode == "off":
        return None, "left_out_by_AHKERNELS_CUDA"
    if torch.version.cuda is None:
        reason = "the_torch_of_the_build_has_no_CUDA"
    elif root is None:
        reason = "no_nvcc_on_the_PATH_or_in_CUDA_HOME"
    elif cuda_version(root).partition(".")[0] != torch.version.cuda.partition(".")[0]:
        reason = f"nvcc_is_{cuda_version(root)}_and_torch_has_CUDA_{torch.version.cuda}"
    else:
        return root, "built"
    if mode == "required":
        sys.exit(f"ahkernels: AHKERNELS_CUDA=required, but {reason.replace('_', ' ')}")
    return None, reason


CUDA_ROOT, CUDA = choose_cuda()
if CUDA_ROOT is not None:
    os.environ["CUDA_HOME"] = str(CUDA_ROOT)  # read as torch's helpers are imported
from torch.utils.cpp_extension import TORCH_LIB_PATH, BuildExtension, include_paths  # noqa: E402

MACROS = [
    ("TORCH_TARGET_VERSION", f"0x{STABLE_ABI[0]:02x}{STABLE_ABI[1]:02x}000000000000ULL"),
    ("AHK_TORCH_TARGET", f"{STABLE_ABI[0]}.{STABLE_ABI[1]}"),
    ("AHK_CUDA", CUDA),
]


def require_compiler() -> None:
    """Stop with one sentence where there is no C++ compiler, before a screenful of build log says so."""
    command = os.environ.get("CXX", "c++" if shutil.which("c++") else "g++").split()[0]
    if shutil.which(command) is None:
        sys.exit(
            f"ahkernels: no C++ compiler ('{command}' is not on the PATH): install g++ 12 or later (Debian and "
            "Ubuntu: 'apt install g++'; conda: 'conda install cxx-compiler'), or name it in CXX."
        )


def cpu_extension() -> Extension:
    """The CPU ops; what needs AVX2 or AVX-512 names them in its own source, so one build serves every processor."""
    sanitize = os.environ.get("AHKERNELS_SANITIZE", "").split()
    return Extension(
        "ahkernels._C",
        sources=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.cpp"))],
        depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.[hi]*"))],
        library_dirs=[TORCH_LIB_PATH],
        libraries=["c10", "torch", "torch_cpu"],
        define_macros=MACROS,
        extra_compile_args=[
            "-std=c++20",
            "-O3",
            "-Wall",
            "-Wextra",
            "-fvisibility=hidden",
            "-g0",
            # First pybind11 itself: torch has a copy that refuses a build for the stable ABI.
            *(f"-isystem{path}" for path in [pybind11.get_include(), *include_paths()]),
            *sanitize,
        ],
        # The libgcc_s of gcc 11 and older lacks conversions of 16-bit numbers: they come from the static library.
        extra_link_args=["-lgcc", *sanitize],
        language="c++",
    )


def cuda_extension(root: Path) -> Extension:
    """The CUDA ops: a library for torch.ops.load_library, with a CUDA runtime of its own."""
    return Extension(
        "ahkernels._cuda",
        sources=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))],
        depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.*h"))],
        include_dirs=[*include_paths(), str(root / "include")],
        library_dirs=[TORCH_LIB_PATH, str(root / "lib64"), str(root / "lib")],
        libraries=["c10", "torch", "torch_cuda", "cudart_static", "rt", "dl", "pthread"],
        define_macros=[*MACROS, ("USE_CUDA", None)],
        extra_compile_args={"cxx": [], "nvcc": [*NVCC_OPTIONS, "--threads=2"]},
        language="c++",
    )


class Build(BuildExtension):
    """Builds the two libraries side by side, and puts a prebuilt one beside the other."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or len(extensions)
        # An editable build gets a fresh folder each time. In one that stays, ninja compiles only what has changed.
        self.build_temp = str(ROOT / "build" / f"{self.plat_name}-{sys.implementation.cache_tag}")

    def build_extension(self, ext: Extension) -> None:
        apart = copy.copy(self)  # each has a folder for its objects and its list of commands
        apart.build_temp = str(Path(self.build_temp) / ext.name)
        BuildExtension.build_extension(apart, ext)

    def run(self) -> None:
        super().run()
        library = prebuilt_cuda()
        if library is not None:
            target = Path(self.get_ext_fullpath("ahkernels._cuda"))
            if library != target.resolve():
                shutil.copyfile(library, target)


require_compiler()
extensions = [cpu_extension()] if CUDA_ROOT is None else [cpu_extension(), cuda_extension(CUDA_ROOT)]
setup(ext_modules=extensions, cmdclass={"build_ext": Build})
