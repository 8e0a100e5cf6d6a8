"""Models whose parameters are cut up over ranks, with whole parameters: FSDP2 (`fully_shard`) and tensor parallelism.

Their parameters are `DTensor`s, which all ranks gather together. The model is not touched: new module objects take the
whole parameters, without the classes and hooks that torch.distributed has given to the modules.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_OF_TORCH = "torch.distributed"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_cut_up(tensor: Tensor) -> bool:
    """Whether a tensor is a part of one that several ranks have together."""
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def whole_model(model: nn.Module) -> nn.Module:
    """The model with whole parameters and buffers, which are new where they were cut up; itself if none was.

    All ranks that share its parameters call this together. Each of them then holds the whole model.
    """
    tensors = (*model.parameters(), *model.buffers())
    if not any(is_cut_up(one) for one in tensors):
        return model
    made: dict[int, Any] = {}  # by the id of a module or tensor, so that what is shared stays shared
    for one in tensors:
        made.setdefault(id(one), _whole(one))
    for module in model.modules():
        made[id(module)] = object.__new__(_own_class(module))
    for module in model.modules():
        state = dict(vars(module))
        for table in ("_parameters", "_buffers", "_modules"):
            state[table] = {name: made.get(id(one), one) for name, one in state[table].items()}
        for table in _HOOKS:
            kept = {handle: hook for handle, hook in state[table].items() if not _is_of_torch(hook)}
            state[table] = type(state[table])(kept)
        vars(made[id(module)]).update(state)
    whole: nn.Module = made[id(model)]
    return whole


def _whole(tensor: Tensor) -> Tensor:
    if not is_cut_up(tensor):
        return tensor
    values = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _own_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before torch.distributed gave it another one."""
    return next(one for one in type(module).__mro__ if not one.__module__.startswith(_OF_TORCH))


def _is_of_torch(hook: Any) -> bool:
    """Whether torch.distributed has registered a hook, which gathers or converts tensors."""
    function = getattr(hook, "func", hook)  # of a partial
    function = getattr(function, "__func__", function)  # of a method
    return str(getattr(function, "__module__", "")).startswith(_OF_TORCH)
