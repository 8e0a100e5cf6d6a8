"""Guards: they refuse models that cannot be measured, and keep a measurement from changing the model."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ahkernels.factors import is_finite


def require_module(model: object) -> None:
    """Raises TypeError naming `model` for anything but a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def refuse_modules(model: nn.Module) -> None:
    """Raises ValueError for modules that mix samples, depend on chance, or change their parameters when called."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"model: expected samples that are independent given the parameters, got {type(module).__name__} "
                f"{name!r} with the statistics of its batch; call model.eval() first"
                + ("" if module.training else ", and give it running statistics (track_running_stats=True)")
            )
        if module.training and _drops_out(module):
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


def check_input(model: nn.Module, x: Tensor) -> None:
    """Raises TypeError or ValueError, naming `x`, if it cannot be an input of the model."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor [n, ...], got {type(x).__name__}")
    if x.dim() == 0 or x.shape[0] == 0:
        raise ValueError(f"x: expected at least one sample, got shape {list(x.shape)}")
    parameter = next(model.parameters())
    if x.device != parameter.device:
        raise ValueError(f"x: expected the device of the model, {parameter.device}, got {x.device}")
    if x.is_floating_point():
        if x.dtype != parameter.dtype:
            raise ValueError(f"x: expected the dtype of the model, {parameter.dtype}, got {x.dtype}")
        if not is_finite(x.detach()):
            raise ValueError("x: expected finite numbers, got nan or inf")


# One thread at a time reads or sets the random-number state: torch holds a lock meanwhile, and may let another thread
# run Python code, which would wait for that lock for ever.
_RANDOM_NUMBERS = threading.Lock()


@contextmanager
def unchanged(x: Tensor) -> Iterator[None]:
    """Enables gradients in whatever mode the caller is, and restores the random-number state, also after an error."""
    devices = [x.device] if x.device.type not in ("cpu", "mps") else []
    forked = torch.random.fork_rng(devices=devices, device_type=x.device.type if devices else "cuda")
    with _RANDOM_NUMBERS:
        forked.__enter__()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        with _RANDOM_NUMBERS:
            forked.__exit__(None, None, None)


class Unwritten(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that would write to protected tensors, before they do.

    Args:
        tensors: The tensors to protect, by their names in messages. Whatever shares their memory is protected too.
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {address: name for name, tensor in tensors.items() if (address := _address(tensor))}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Raises ValueError, naming the tensor, if the operation would change a protected one."""
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable:
            for index, argument in enumerate(func._schema.arguments):
                if argument.alias_info is None or not argument.alias_info.is_write:
                    continue
                written = args[index] if index < len(args) else kwargs.get(argument.name)
                for tensor in tree_leaves(written):
                    name = self.names.get(_address(tensor)) if isinstance(tensor, Tensor) else None
                    if name is not None:
                        raise ValueError(
                            "model: expected calls that leave parameters and x as they are, got one that changes "
                            f"{name} in place"
                        )
        return func(*args, **kwargs)


def _address(tensor: Tensor) -> int:
    """Returns the address of a tensor's memory; 0 if it has no element, or no storage, as sparse tensors."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


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


@contextmanager
def quietly_batched() -> Iterator[None]:
    """Silences torch's advice about operations that it batches in a loop; a user can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        yield
