"""Samples and labels from a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ahkernels.files.archive import require_checksums
from ahkernels.optional_import import optional_import

_EXPECTED = "--data: expected an .npz or .safetensors file with labels y, and samples x or several arrays of inputs"


def read_data(
    path: str | os.PathLike[str], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | dict[str, Tensor], Tensor]:
    """Reads x and y: the array "x", or all but "y" as a dict where there is none of that name.

    Args:
        path: The file.
        dtype: That of the model, which inputs with fractions take.
        device: That of the model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is another file, or lacks labels or samples.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{_EXPECTED}, got {str(path)!r}, which does not exist")
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{_EXPECTED}, got {str(path)!r}")
    try:
        tensors = _npz(path) if path.suffix == ".npz" else _safetensors(path)
    except ImportError:
        raise
    except Exception as error:  # whatever a damaged file makes of the readers
        raise ValueError(f"{_EXPECTED}, got {str(path)!r}, which cannot be read: {error}") from error
    if "y" not in tensors or len(tensors) < 2:
        raise ValueError(f"{_EXPECTED}, got {str(path)!r} with {', '.join(tensors) or 'nothing'}")
    y = tensors.pop("y").to(device)
    x = {name: one.to(device, dtype if one.is_floating_point() else None) for name, one in tensors.items()}
    return (x["x"] if list(x) == ["x"] else x), y if y.is_floating_point() else y.long()


def _npz(path: Path) -> dict[str, Tensor]:
    require_checksums(path)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = optional_import("safetensors.torch", "a file of safetensors", "pip install safetensors")
    found: dict[str, Tensor] = safetensors.load_file(path)
    return found
