"""A device that is not there: tensors in memory that torch and this package take for those of a device.

It shows what the host has to do with a device, without one: where it waits for the device, how many operations it
launches there, and which operations mix tensors of the two. The ops take their route on CUDA. Its two kernels have
stand-ins that compute nothing, so that numbers that come from tiles mean nothing.

A tensor is on the device if its storage is. Two modes of torch see to that: one for functions, where devices are
arguments and attributes, and one for the operations that these and autograd come down to.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

import ahkernels
from ahkernels import ops
from ahkernels.autocast import without_autocast
from ahkernels.capture.call import Uses
from ahkernels.ops import arguments, cuda, plain
from ahkernels.ops.batch import flat
from ahkernels.ops.cuda import tiles

DEVICE = torch.device("maia", 0)  # of a kind that torch knows and nothing here treats apart
_HOST = torch.device("cpu")
_PACKAGE = str(Path(ahkernels.__file__).parent)
_WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# Those that wait without a tag, or on a device alone: they look at what a factorisation says about its success.
_WAITING = {"_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq"}
_INDEXING = {"index", "index_put", "index_put_", "_unsafe_index"}  # wait for masks and for indices of the host alone
_FROM_NUMBERS = {"tensor", "as_tensor", "asarray", "new_tensor", "scalar_tensor"}
_ON_HOST_ALONE = {"numpy", "__array__"}
_DEVICE_OF = Tensor.device.__get__  # type: ignore[attr-defined]


class PretendedDevice:
    """A device for as long as `in_use` lasts.

    Attributes:
        waits: How often each function of this package waited for the device, by "file:function what".
        launches: How many operations it launched there, by "file:function what". A view or an allocation is none.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self._held: set[StorageWeakRef] = set()
        self._unplaced: set[StorageWeakRef] = set()  # made by torch itself, which has placed them with a gradient, say
        self._paused = False

    def adopt(self, *values: Tensor | nn.Module) -> None:
        """Takes tensors, or the parameters and buffers of models, for those of the device."""
        for value in values:
            held = [value] if isinstance(value, Tensor) else [*value.parameters(), *value.buffers()]
            self._held.update(StorageWeakRef(one.untyped_storage()) for one in held)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Pretends."""
        with ExitStack() as stack:
            for name, implementation in _implementations().items():
                stack.enter_context(mock.patch.object(torch.ops.ahkernels, name, implementation))
            for name, stand_in in _KERNELS.items():
                stack.enter_context(mock.patch.object(tiles, name, self._kernel(name, stand_in)))
            stack.enter_context(mock.patch.object(Uses, "no_gradient", self._on_device(Uses.no_gradient)))
            stack.enter_context(_Operations(self))
            stack.enter_context(_Functions(self))
            yield

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device."""
        storage = _storage(tensor)
        return storage is not None and StorageWeakRef(storage) in self._held

    def note_wait(self, what: str) -> None:
        """Counts a wait."""
        if not self._paused:
            self.waits[f"{_caller()} {what}"] += 1

    def note_launch(self, what: str) -> None:
        """Counts an operation on the device."""
        if not self._paused:
            self.launches[f"{_caller()} {what}"] += 1

    def put(self, value: object, *, on_device: bool) -> None:
        """Puts new tensors on the device or on the host."""
        for tensor in tree_iter(value):
            storage = _storage(tensor) if isinstance(tensor, Tensor) else None
            if storage is not None:
                (self._held.add if on_device else self._held.discard)(StorageWeakRef(storage))

    def place(self, value: object, *, on_device: bool) -> None:
        """Puts those tensors somewhere that are nowhere yet."""
        for tensor in tree_iter(value):
            storage = _storage(tensor) if isinstance(tensor, Tensor) else None
            if storage is not None and (reference := StorageWeakRef(storage)) in self._unplaced:
                self._unplaced.remove(reference)
                if on_device:
                    self._held.add(reference)

    def note_new(self, value: object) -> None:
        """Notes tensors that were made from nothing."""
        self._unplaced.update(StorageWeakRef(_storage(one)) for one in tree_iter(value) if isinstance(one, Tensor))

    def _on_device(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A function that makes a tensor where the graph of autograd says, which knows of memory alone."""

        def on_device(*given: Any) -> Tensor:
            made = function(*given)
            self.put(made, on_device=True)
            return made

        return on_device

    def _kernel(self, name: str, stand_in: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def kernel(*given: Any, **named: Any) -> Tensor:
            self.note_launch(name)
            self._paused = True
            try:
                return stand_in(*given, **named)
            finally:
                self._paused = False

        return kernel


def devices_of_updates(tracker: ahkernels.AlignmentTracker, steps: int = 2) -> list[PretendedDevice]:
    """The device of a tracker's first measurement, and those of the later ones."""
    devices = []
    for step in range(steps):
        device = PretendedDevice()
        device.adopt(tracker.model, tracker.x)
        with device.in_use():
            tracker.update(step)
        devices.append(device)
    return devices


class _Functions(TorchFunctionMode):
    """What says where a tensor is, or moves it, or makes one on a device."""

    def __init__(self, device: PretendedDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device, name = self._device, getattr(func, "__name__", "")
        if func == _DEVICE_OF:
            return DEVICE if device.holds(args[0]) else func(*args)
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        on_device = tensor is not None and device.holds(tensor)
        if on_device and name in _ON_HOST_ALONE:
            raise RuntimeError(f"{_caller()}: {name} of a tensor on the device")
        if on_device and name == "tolist":
            device.note_wait(name)
        target = _HOST if name == "cpu" else None

        def to_host(value: Any) -> Any:
            """The same argument for memory, where all tensors are."""
            nonlocal target
            if isinstance(value, torch.device) or (isinstance(value, str) and value in ("cpu", str(DEVICE))):
                target = torch.device(value)
                return _HOST
            return value

        if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
            target = DEVICE if device.holds(args[1]) else _HOST
        args, kwargs = tree_map(to_host, tuple(args)), tree_map(to_host, dict(kwargs or {}))
        found = func(*args, **kwargs)
        device.place(found, on_device=False)
        if name in ("to", "cpu"):
            return found if target is None else self._moved(found, on_device, target == DEVICE)
        if name in _FROM_NUMBERS and (target == DEVICE or (name == "new_tensor" and on_device)):
            device.note_wait(f"{name}: host to device")
        if target is not None and isinstance(found, Tensor):
            device.put(found, on_device=target == DEVICE)
        return found

    def _moved(self, found: Tensor, from_device: bool, to_device: bool) -> Tensor:
        if from_device == to_device:
            return found
        found = found.clone()
        self._device.put(found, on_device=to_device)
        if found.numel():
            self._device.note_wait("host to device" if to_device else "device to host")
        return found


class _Operations(TorchDispatchMode):
    """Every operation: what it makes is on the device if what it reads is."""

    def __init__(self, device: PretendedDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device, name = self._device, func._schema.name.rpartition("::")[2]
        tensors = [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
        if any(map(device.holds, tensors)):
            device.place(tensors, on_device=True)
        held = [device.holds(one) for one in tensors]
        before = {StorageWeakRef(storage) for storage in map(_storage, tensors) if storage is not None}
        found = func(*args, **(kwargs or {}))
        if not any(held):
            if not tensors:
                device.note_new(found)
            return found
        results = [one for one in tree_iter(found) if isinstance(one, Tensor)]
        new = [one for one in results if (storage := _storage(one)) is None or StorageWeakRef(storage) not in before]
        device.put(new, on_device=True)
        self._look_for_waits(func, name, tensors, held)
        writes = func._schema.is_mutable or bool(new)
        if (writes or not results) and not name.startswith(("empty", "new_empty")) and any(r.numel() for r in results):
            device.note_launch(name)
        return found

    def _look_for_waits(self, func: Any, name: str, tensors: list[Tensor], held: list[bool]) -> None:
        device = self._device
        of_host = [one for one, on_device in zip(tensors, held, strict=True) if not on_device and one.dim() > 0]
        if name in _INDEXING:
            masks = [one for one in tensors[1:] if one.dtype in (torch.bool, torch.uint8)]
            of_host = [one for one in of_host if not one.is_floating_point()]
            if masks or of_host:
                device.note_wait(f"{name}: {'mask' if masks else 'indices of the host'}")
        elif name in ("copy_", "_to_copy"):
            if tensors[0].numel() and (of_host or not held[0]):
                device.note_wait("host to device" if held[0] else "device to host")
        elif of_host:
            raise RuntimeError(f"{_caller()}: {name}: expected tensors on the device, got one of the host among them")
        elif name in _WAITING or not _WAITING_TAGS.isdisjoint(func.tags):
            device.note_wait(name)


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage() if tensor.layout == torch.strided else None


def _caller() -> str:
    """The innermost function of this package that is running, as "folder/file:function"."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return "elsewhere"
    return f"{Path(frame.f_code.co_filename).relative_to(_PACKAGE).with_suffix('')}:{frame.f_code.co_name}"


def _implementations() -> dict[str, Callable[..., Any]]:
    """What each op comes to on CUDA: its own there, else the one in plain torch."""
    found = {}
    for name in [*ops.__all__, "tangent_gram_out"]:
        if hasattr(torch.ops.ahkernels, name):
            own = ops.joined(cuda) if name == "tangent_moments" else getattr(cuda, name, getattr(plain, name))
            batches = 2 if name == "tangent_cross_product" else 1
            found[name] = flat(without_autocast()(own), getattr(arguments, name), batches)
    return found


def _pack_parts(factor: Tensor, scale: Tensor, count: int) -> Tensor:
    n, s, o, m = factor.shape
    tile = tiles.PANEL_SAMPLES
    rows, k = -(-n * o // tile) * tile, max(1, -(-m // 64)) * 64
    return factor.new_zeros(count, s, rows, k, dtype=torch.bfloat16)


def _pack_slices(factor: Tensor, scale: Tensor, parts: Tensor, first: int) -> None:
    parts[:, first:].zero_()


def _tangent_tiles(parts: Tensor, *_: Any) -> Tensor:
    return parts.new_ones(1, dtype=torch.float64)


def _deviation_tiles(parts: Tensor, *_: Any) -> Tensor:
    return parts.new_full((1,), 1e12, dtype=torch.float64)  # beside which what is subtracted does not count


_KERNELS: dict[str, Callable[..., Tensor | None]] = {
    "pack_parts": _pack_parts,
    "pack_slices": _pack_slices,
    "tangent_tiles": _tangent_tiles,
    "deviation_tiles": _deviation_tiles,
}
