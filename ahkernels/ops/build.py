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
        f"({error}). Build it with 'pip install -e .' in the repository, or with 'pip install .' to import ahkernels "
        "from another folder than that."
    ) from error


# Sizes that the compiled code cuts K by (csrc/tiling.h): ``panel``, the samples along a side of a tile of the CPU ops,
# ``cuda_tile``, the rows and columns of a tile of the CUDA kernels, ``cuda_layers``, the layers that they sum up in one
# pass, and ``block_rows_in_memory``, the rows of K in a block whose tiles the CPU ops keep in memory.
TILING: dict[str, int] = dict(_C.tiling())

_FACTS: dict[str, Any] = dict(_C.build_facts())
# Of the libraries in the folder, for other Pythons too, the one that was built with the extension.
_CUDA_LIBRARY = Path(_C.__file__).with_name(Path(_C.__file__).name.replace("_C", "_cuda", 1))
_REMEDY = "Build ahkernels again: with AHKERNELS_CUDA=off it needs no CUDA library."


def load_cuda() -> bool:
    """Loads the CUDA kernels where they are there and torch has CUDA of the same major version."""
    if _FACTS["cuda"] not in ("built", "prebuilt") or torch.version.cuda is None:
        return False
    if not _CUDA_LIBRARY.is_file():
        others = ", ".join(sorted(path.name for path in _CUDA_LIBRARY.parent.glob("_cuda*.so")))
        raise ImportError(
            f"ahkernels: the CUDA library is missing: expected {_CUDA_LIBRARY}, found {others or 'none'} there. "
            + _REMEDY
        )
    try:
        torch.ops.load_library(_CUDA_LIBRARY)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"ahkernels: the CUDA library {_CUDA_LIBRARY} does not load ({error.__cause__ or error}). {_REMEDY}"
        ) from error
    return cuda_library()["cuda"].partition(".")[0] == torch.version.cuda.partition(".")[0]


def cuda_library() -> dict[str, str]:
    """How the CUDA library in use was built: ``cuda`` (its version), ``architectures`` and ``watchdog``; or nothing."""
    if not hasattr(torch.ops.ahkernels, "cuda_build"):
        return {}
    return dict(fact.split("=") for fact in torch.ops.ahkernels.cuda_build().split())


def build_info() -> dict[str, Any]:
    """How the extension was built, and what runs on each kind of device here.

    Returns:
        ``compiler``, ``built_with_torch``, ``stable_abi_target`` (the oldest torch it runs under), ``torch`` (the one
        in use), ``cuda`` (the version that the CUDA kernels were built with, or why they are not in use),
        ``cuda_architectures`` (where they are: compute capabilities times ten), ``cpu_capability`` (instruction sets in
        use, best first) and ``implementations`` (device type -> "kernels" or "plain torch").

    Example:
        >>> import ahkernels as ah
        >>> ah.build_info()["implementations"]["cpu"]
        'kernels'
    """
    facts = dict(_FACTS)
    library = cuda_library()
    if library:
        facts["cuda"] = library["cuda"]
        facts["cuda_architectures"] = [int(number) for number in library["architectures"].split(",")]
    elif facts["cuda"] in ("built", "prebuilt"):
        facts["cuda"] += ", but the torch in use has no CUDA"
    else:
        facts["cuda"] = "not built: " + facts["cuda"].replace("_", " ")
    facts["torch"] = torch.__version__
    facts["implementations"] = {
        device: "kernels" if _has_kernels(key) else "plain torch"
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA"), ("mps", "MPS"), ("xpu", "XPU"))
    }
    return facts


def _has_kernels(dispatch_key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("ahkernels::centered_inner_products", dispatch_key))
