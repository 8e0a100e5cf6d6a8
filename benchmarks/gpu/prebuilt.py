"""Whether a CUDA library that was built elsewhere runs here: asked of the library itself, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ASK = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
print(json.dumps({
    "library": dict(fact.split("=") for fact in torch.ops.ahkernels.cuda_build().split()),
    "cuda": torch.version.cuda,
    "capability": torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
}))
"""


def reason_against(library: Path, seconds: float = 60) -> str | None:
    """Why the library cannot be used here, or None where it fits torch, its CUDA and the device's architecture."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(library.resolve())], capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"it did not load within {seconds:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it does not load"])[-1]
    return misfit(**json.loads(done.stdout.splitlines()[-1]))


def misfit(library: dict[str, str], cuda: str, capability: list[int] | None) -> str | None:
    if library["cuda"].partition(".")[0] != cuda.partition(".")[0]:
        return f"it was built with CUDA {library['cuda']}, and torch has {cuda}"
    if capability is None:
        return "torch finds no CUDA device"
    built, here = [int(number) for number in library["architectures"].split(",")], 10 * capability[0] + capability[1]
    # Code for 9.0 is for that alone (sm_90a); that for the lowest runs on all later ones, as it is or from PTX.
    if (here // 10 == 9 and here not in built) or here < min(built):
        return f"it was built for architectures {built}, and the device has {here}"
    return None
