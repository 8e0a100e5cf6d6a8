"""Loads the compiled libraries and says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

try:
    from ahkernels import _C
except ImportError as error:
    raise ImportError(
        "ahkernels: the compiled extension is missing or does not load "
        f"({error}). Build it with 'pip install .' in the repository and import ahkernels from another folder, or "
        "with 'pip install --no-build-isolation -e .' to import it from there."
    ) from error


_FACTS: dict[str, Any] = dict(_C.build_facts())
_CUDA_BUILT = _FACTS["cuda"][0].isdigit()


def load_cuda() -> bool:
    """Loads the CUDA kernels where they were built and torch has CUDA of the same major version."""
    cuda = torch.version.cuda
    if not _CUDA_BUILT or cuda is None or cuda.partition(".")[0] != _FACTS["cuda"].partition(".")[0]:
        return False
    (library,) = Path(__file__).parents[1].glob("_cuda*.so")
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    return True


def build_info() -> dict[str, Any]:
    """How the extension was built, and what runs on each kind of device here.

    Returns:
        ``compiler``, ``built_with_torch``, ``stable_abi_target`` (the oldest torch it runs under), ``torch`` (the one
        in use), ``cuda`` (the version that the CUDA kernels were built with, or why they were not), ``cpu_capability``
        (instruction sets in use, best first) and ``implementations`` (device type -> "kernels" or "plain torch").
    """
    facts = dict(_FACTS)
    if not _CUDA_BUILT:
        facts["cuda"] = "not built: " + facts["cuda"].replace("_", " ")
    facts["torch"] = torch.__version__
    facts["implementations"] = {
        device: "kernels" if _has_kernels(key) else "plain torch"
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA"), ("mps", "MPS"), ("xpu", "XPU"))
    }
    return facts


def _has_kernels(dispatch_key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("ahkernels::centered_moments", dispatch_key))
