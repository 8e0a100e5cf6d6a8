"""The machine of a measurement: processor, instruction sets, threads and library versions."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

INSTRUCTION_SETS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
)


def use_threads(count: int | None) -> int:
    """Bind this process to `count` cores: torch, jax (imported later) and subprocesses all use as many."""
    cores = sorted(os.sched_getaffinity(0))
    count = min(count or len(cores), len(cores))
    os.sched_setaffinity(0, cores[:count])
    torch.set_num_threads(count)
    return count


def describe() -> dict[str, object]:
    """Description to store beside every result; holds no host name and no path."""
    config = torch.__config__.show()
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cpu_family_model": [_cpuinfo("cpu family"), _cpuinfo("model")],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instruction_sets": [
            flag for flag in INSTRUCTION_SETS if flag in (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
        ],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mkl": _first(r"Math Kernel Library Version (\S+)", config),
        "onednn": _first(r"MKL-DNN v(\S+)", config),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **{name: _version(name) for name in ("jax", "jaxlib", "numpy", "ahkernels")},
    }


def _cpuinfo(key: str) -> str | None:
    try:
        return _first(rf"^{key}\s*: (.*)$", Path("/proc/cpuinfo").read_text())
    except OSError:
        return None


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match.group(1) if match else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
