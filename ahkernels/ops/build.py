"""Loads the compiled extension and says what it is."""

from __future__ import annotations

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


def build_info() -> dict[str, Any]:
    """How the extension was built, and what runs on each kind of device here.

    Returns:
        ``compiler``, ``built_with_torch``, ``stable_abi_target`` (the oldest torch it runs under), ``torch`` (the one
        in use), ``cpu_capability`` (instruction sets in use, best first) and ``implementations`` (device type ->
        "kernels" or "plain torch").
    """
    facts: dict[str, Any] = dict(_C.build_facts())
    facts["torch"] = torch.__version__
    facts["implementations"] = {
        device: "kernels" if _has_kernels(key) else "plain torch"
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA"), ("mps", "MPS"), ("xpu", "XPU"))
    }
    return facts


def _has_kernels(dispatch_key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("ahkernels::centered_moments", dispatch_key))
