"""The observer of a call: it sees every operation, refuses some before they do harm, and notes what others tell."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# A dispatch mode imports this module, whose functions have the default process group of that moment among their default
# arguments. A group that they keep alive beyond destroy_process_group() may abort the process as it ends.
if torch.distributed.is_available():
    import torch.distributed.nn.functional

# For one thread at a time to observe: torch has flags for all threads that say whether there is a dispatch mode.
OBSERVING = threading.RLock()


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Observes the operations of one call, and refuses those that would write to protected tensors.

    Args:
        protected: The tensors to protect, by their names in messages. Whatever shares their memory is protected too.
        replaced: The names of parameters that the twin of the model has otherwise, by the id of the original.

    Attributes:
        taken: The names of replaced parameters whose original an operation took all the same.
        drawn: Whether an operation drew random numbers.
        bytes: The size of all results that have memory of their own.
    """

    supports_higher_order_operators = True

    def __init__(self, protected: Mapping[str, Tensor], replaced: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {address: name for name, tensor in protected.items() if (address := _address(tensor))}
        self.replaced = replaced
        self.taken: set[str] = set()
        self.drawn = False
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Raises ValueError, naming the tensor, if the operation would change a protected one."""
        kwargs = kwargs or {}
        if self.replaced:
            self.taken |= {self.replaced[id(one)] for one in tree_leaves((args, kwargs)) if id(one) in self.replaced}
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            self._require_unwritten(func, args, kwargs)
        self.drawn |= torch.Tag.nondeterministic_seeded in func.tags and not _never_drops(func, args, kwargs)
        results = func(*args, **kwargs)
        if not any(result.alias_info for result in func._schema.returns):
            self.bytes += sum(one.nbytes for one in tree_leaves(results) if isinstance(one, Tensor) and _address(one))
        return results

    def _require_unwritten(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = args[index] if index < len(args) else kwargs.get(argument.name)
            for tensor in tree_leaves(written):
                name = self.names.get(_address(tensor)) if isinstance(tensor, Tensor) else None
                if name is not None:
                    raise ValueError(
                        "model: expected calls that leave parameters and x as they are, got one that changes "
                        f"{name} in place; write .clone() before the operation, or inplace=False"
                    )


def _never_drops(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation that may drop out entries, such as a fused attention, is called with a probability of 0."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            given = args[index] if index < len(args) else kwargs.get(argument.name, argument.default_value)
            return bool(given == 0)
    return False


def _address(tensor: Tensor) -> int:
    """Returns the address of a tensor's memory; 0 if it has no element, or no storage, as sparse tensors."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0
