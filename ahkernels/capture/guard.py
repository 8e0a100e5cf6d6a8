"""Guards: they refuse models that cannot be measured, and keep a measurement from changing the model."""

from __future__ import annotations

import functools
import random
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import numpy
import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.utils import _python_dispatch

from ahkernels.autocast import DEVICES, without_autocast
from ahkernels.capture.choice import shown_name


def require_module(model: object) -> None:
    """Raises TypeError naming `model` for anything but a module, and ValueError for a scripted one."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if type(model) is torch.jit._script.RecursiveScriptModule:
        raise ValueError(
            "model: expected a module of Python, got a scripted one; measure the module that torch.jit.script got"
        )


def refuse_modules(model: nn.Module, *, evaluating: bool) -> None:
    """Raises ValueError for modules that mix samples, depend on chance, or change their parameters when called.

    Args:
        model: The network.
        evaluating: Whether it will be called in eval mode, whatever mode it is in now.
    """
    for path, module in model.named_modules():
        name = shown_name(path)
        training = module.training and not evaluating
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (training or module.running_mean is None):
            raise ValueError(
                f"model: expected samples that are independent given the parameters, got {type(module).__name__} "
                f"{name!r} with the statistics of its batch; call model.eval() first"
                + ("" if training else ", and give it running statistics (track_running_stats=True)")
            )
        if training and _drops_out(module):
            raise ValueError(
                f"model: expected a deterministic network, got {type(module).__name__} {name!r} in training mode; "
                "call model.eval() first"
            )
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            raise ValueError(
                f"model: expected calls that leave parameters as they are, got {type(module).__name__} {name!r} with "
                "max_norm, whose calls rescale its weight; rescale it once and set max_norm = None"
            )


def _drops_out(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) and module.dropout > 0


P = ParamSpec("P")
T = TypeVar("T")


def leaving_no_trace(function: Callable[P, T]) -> Callable[P, T]:
    """Runs a function with gradients and without autocast, and leaves the modes of torch in this thread as they were.

    Context managers do so too, but not where a signal comes between their last line and that of their caller. What was
    there before is therefore known here before anything changes, and is put back in any case.
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        modes = _Modes()
        try:
            inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
            with inference, without_autocast():
                torch._C._set_grad_enabled(True)
                return function(*args, **kwargs)
        except BaseException as error:
            if not isinstance(error, Exception):  # an interrupt
                traceback.clear_frames(error.__traceback__)  # so that suspended context managers undo what they did
                modes.restore_flags()
            raise
        finally:
            modes.restore()

    return guarded


class _Modes:
    """The modes of torch in this thread, as far as a measurement changes them."""

    def __init__(self) -> None:
        self.gradients = torch.is_grad_enabled()
        self.autocast = {device: torch.is_autocast_enabled(device) for device in DEVICES}
        self.autocast_cache = torch.is_autocast_cache_enabled()
        self.autocast_dtypes = {device: torch.get_autocast_dtype(device) for device in DEVICES}
        self.dispatch = torch._C._len_torch_dispatch_stack()
        self.dispatch_flags = {
            name: flag for name, flag in vars(_python_dispatch).items() if name.startswith("_is_in_")
        }
        self.functorch = _functorch.get_dynamic_layer_stack_depth()
        self.batched = _in_batched_gradients()
        self.hooks_on_saved = _hooks_on_saved_tensors()

    def restore_flags(self) -> None:
        """Puts back the flags of dispatch modes, which all threads share."""
        vars(_python_dispatch).update(self.dispatch_flags)

    def restore(self) -> None:
        """Puts back what has changed."""
        torch._C._set_grad_enabled(self.gradients)
        for device, enabled in self.autocast.items():
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, self.autocast_dtypes[device])
        torch.set_autocast_cache_enabled(self.autocast_cache)
        while torch._C._len_torch_dispatch_stack() > self.dispatch:
            torch._C._pop_torch_dispatch_stack(None)
        if _functorch.get_dynamic_layer_stack_depth() > self.functorch:
            _functorch.pop_dynamic_layer_stack_and_undo_to_depth(self.functorch)
        while _in_batched_gradients() and not self.batched:
            torch._C._vmapmode_decrement_nesting()
        if self.hooks_on_saved and not _hooks_on_saved_tensors():
            torch._C._autograd._saved_tensors_hooks_enable()


def version_of(tensor: Tensor) -> int:
    """How often the memory of a tensor has been written to, as far as that is counted."""
    return 0 if tensor.is_inference() else tensor._version


def _hooks_on_saved_tensors() -> bool:
    return bool(torch._C._autograd._saved_tensors_hooks_is_enabled())  # type: ignore[attr-defined]


def _in_batched_gradients() -> bool:
    return bool(torch._C._dispatch_tls_local_include_set().has("VmapMode"))


class RandomNumbers:
    """The states of random numbers: those of Python and NumPy, and those of torch for the CPU and one device.

    Args:
        device: The device, which may be the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module = torch.get_device_module(device) if device.type in _DEVICES else None
        self._of_python, self._of_numpy = random.getstate(), _numpy_state()
        with _RANDOM_NUMBERS:
            self._seed, self._of_torch = torch.initial_seed(), torch.get_rng_state()
            self._of_device = None if self._module is None else self._module.get_rng_state(device)

    def drawn(self) -> bool:
        """Whether any numbers have been drawn since."""
        with _RANDOM_NUMBERS:
            drawn = not torch.equal(torch.get_rng_state(), self._of_torch)
            if self._module is not None and self._of_device is not None:
                drawn |= not torch.equal(self._module.get_rng_state(self._device), self._of_device)
        return drawn or self.drawn_outside_of_torch()

    def drawn_outside_of_torch(self) -> bool:
        """Whether Python or NumPy have drawn numbers since, or torch has another seed."""
        numpy_now, numpy_then = _numpy_state()["state"], self._of_numpy["state"]
        drawn_by_numpy = numpy_now["pos"] != numpy_then["pos"] or (numpy_now["key"] != numpy_then["key"]).any()
        return drawn_by_numpy or random.getstate() != self._of_python or torch.initial_seed() != self._seed

    def restore(self) -> None:
        """Sets the states that were found."""
        random.setstate(self._of_python)
        numpy.random.set_state(self._of_numpy)  # noqa: NPY002
        with _RANDOM_NUMBERS:
            torch.set_rng_state(self._of_torch)
            if self._module is not None:
                self._module.set_rng_state(self._of_device, self._device)

    def advance(self) -> None:
        """Goes on to other states."""
        random.random()
        numpy.random.random()  # noqa: NPY002
        torch.rand(97)
        if self._module is not None:
            torch.rand(97, device=self._device)


def _numpy_state() -> dict[str, Any]:
    # The global state is what a model may draw from.
    state: dict[str, Any] = numpy.random.get_state(legacy=False)  # noqa: NPY002
    return state


_DEVICES = ("cuda", "xpu")
# One thread at a time reads or sets the state of random numbers: torch holds a lock meanwhile, and may let another
# thread run Python code, which would wait for that lock for ever.
_RANDOM_NUMBERS = threading.Lock()


@contextmanager
def other_random_numbers(device: torch.device, drawn: bool) -> Iterator[None]:
    """Goes on to another state of random numbers, and puts that which was found back, also after an error.

    Args:
        device: That of the model.
        drawn: Whether the model draws random numbers; otherwise nothing is done, so that other threads may draw.
    """
    if not drawn:
        yield
        return
    found = RandomNumbers(device)
    try:
        found.advance()
        yield
    finally:
        found.restore()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model in eval mode, and then restores the mode of each module, also after an error.

    The flags are set directly, since an overridden train() may have side effects.

    Args:
        model: The network; its modules may be in different modes.

    Raises:
        TypeError: For anything but a module.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout())
        >>> with ah.evaluating(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    require_module(model)
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, flag in flags:
            module.training = flag


class _Quietly:
    """Silences torch's advice about operations that it batches in a loop; a user can do nothing about it.

    The switch is one for all threads: the last one that needs it turns it back.
    """

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            self.users += 1
            _functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                _functorch._set_vmap_fallback_warning_enabled(True)  # type: ignore[attr-defined]


quietly_batched = _Quietly()
