"""Kernels in safetensors: the factors of their layers, and how they make up kernels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ahkernels.factors import LayerFactors
from ahkernels.files.digest import DIGEST, bits_of, digest_of, require_digest
from ahkernels.files.replace import replace_file
from ahkernels.kernel import TangentKernel
from ahkernels.optional_import import optional_import
from ahkernels.outputs import OutputSelection

_KEY = "ahkernels"  # of the metadata
_INSTALL = "pip install safetensors"


def save_kernels(kernels: Mapping[str, TangentKernel], path: str | os.PathLike[str]) -> None:
    """Writes kernels to a safetensors file, as their factors.

    The file is replaced whole or not at all. It takes as many bytes as the factors do.

    Args:
        kernels: Kernels by name, as `tangent_kernels` returns them.
        path: The file.

    Raises:
        ImportError: If safetensors is not installed.
        FileNotFoundError: If the folder does not exist.
        TypeError: If one is no tangent kernel.
        ValueError: If a kernel is over several processes, or has only a square root of itself.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> kernels = ah.tangent_kernels(model, torch.randn(20, 4))
        >>> ah.save_kernels(kernels, "kernels.safetensors")
        >>> again = ah.load_kernels("kernels.safetensors")
        >>> again["0"].trace() == kernels["0"].trace()
        True
    """
    safetensors = optional_import("safetensors.torch", "save_kernels()", _INSTALL)
    if not isinstance(kernels, Mapping):
        raise TypeError(f"kernels: expected kernels by name, got {type(kernels).__name__}; write {{'fc': kernel}}")
    tensors = _Tensors()
    about: list[dict[str, Any]] = []
    for name, kernel in kernels.items():
        if not isinstance(kernel, TangentKernel):
            raise TypeError(f"kernels: expected tangent kernels, got {type(kernel).__name__} as {name!r}")
        if kernel.samples.sharded:
            raise ValueError(f"kernels: expected kernels of this process alone, got {name!r} over several processes")
        layers: list[dict[str, Any]] = []
        for one in kernel.factors:
            if one.root is not None:
                raise ValueError(
                    f"kernels: expected the factors or the Jacobian of each layer, got a square root of the kernel of "
                    f"{one.layer!r}; capture it with a larger memory_budget"
                )
            of_layer = {"forward": tensors.name_of(one.forward), "backward": tensors.name_of(one.backward)}
            layers.append({"layer": one.layer, "bias": bool(one.bias), "by_jacobian": one.by_jacobian, **of_layer})
        outputs = {"spec": kernel.outputs.plain_spec, "total": kernel.outputs.total}
        how = {"name": kernel.name, "precision": kernel.precision, "outputs": outputs, "layers": layers}
        about.append({"key": name, **how})
    text = json.dumps(about)
    metadata = {_KEY: text, DIGEST: digest_of(_parts(text, tensors.by_name))}
    content = safetensors.save(tensors.by_name, metadata)
    replace_file(path, lambda file: file.write(content))


def load_kernels(path: str | os.PathLike[str], device: str = "cpu") -> dict[str, TangentKernel]:
    """Reads the kernels that `save_kernels` wrote.

    Args:
        path: The file.
        device: Where to put the factors.

    Returns:
        The kernels by name.

    Raises:
        ImportError: If safetensors is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, or has changed since it was written.

    Example:
        >>> import torch, ahkernels as ah
        >>> kernel = ah.TangentKernel(ah.LayerFactors(torch.ones(5, 1, 3), torch.ones(5, 1, 2, 4), bias=True))
        >>> ah.save_kernels({"fc1": kernel}, "kernel.safetensors")
        >>> ah.load_kernels("kernel.safetensors")
        {'fc1': TangentKernel(shape=(10, 10), outputs='all', dtype=torch.float32)}
    """
    safetensors = optional_import("safetensors", "load_kernels()", _INSTALL)
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: expected a file, got {str(path)!r}, which does not exist")
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        require_digest(metadata.get(DIGEST), _parts(metadata[_KEY], tensors))
        tensors = {name: one.to(device) for name, one in tensors.items()}
        return {one["key"]: _kernel(tensors, one) for one in json.loads(metadata[_KEY])}
    except Exception as error:  # whatever a damaged file makes of the reader
        raise ValueError(f"path: expected a file of save_kernels(), got {str(path)!r}: {error!r}") from error


class _Tensors:
    """Tensors to be written, each once however many kernels have it, and none in the memory of another.

    Attributes:
        by_name: The tensors.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}
        self._names: dict[int, tuple[str, Tensor]] = {}  # with the tensor, whose id is then that of no other
        self._memory: set[int] = set()

    def name_of(self, tensor: Tensor) -> str:
        """The name that a tensor has in the file."""
        if id(tensor) not in self._names:
            name, whole = str(len(self.by_name)), tensor.detach().contiguous()
            memory = whole.untyped_storage().data_ptr()
            self.by_name[name] = whole.clone() if memory in self._memory else whole
            self._memory.add(memory)
            self._names[id(tensor)] = (name, tensor)
        return self._names[id(tensor)][0]


def _parts(about: str, tensors: Mapping[str, Tensor]) -> Iterator[str | memoryview]:
    """All that a file has in it."""
    yield about
    for name in sorted(tensors):
        yield from (name, f"{tensors[name].dtype} {list(tensors[name].shape)}", bits_of(tensors[name]))


def _kernel(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> TangentKernel:
    layers = [
        LayerFactors(
            tensors[layer["forward"]],
            tensors[layer["backward"]],
            layer["bias"],
            layer["layer"],
            layer["by_jacobian"],
        )
        for layer in about["layers"]
    ]
    outputs = OutputSelection(**about["outputs"])
    return TangentKernel(layers, outputs, about["precision"], about["name"])
