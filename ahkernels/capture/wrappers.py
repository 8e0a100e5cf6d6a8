"""Wrappers around a model that change how it is trained or run, and not what it computes."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ahkernels.capture.guard import require_module
from ahkernels.distributed.whole import is_cut_up

_BY_ATTRIBUTE: dict[type[nn.Module], str] = {
    DistributedDataParallel: "module",
    DataParallel: "module",
    AveragedModel: "module",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of wrappers: DistributedDataParallel, DataParallel, AveragedModel, torch.compile, PEFT.

    Layers have the names that they have in the model itself, and no process waits for another.

    Raises:
        TypeError: For anything but a module.
        ValueError: If the parameters are cut up over several processes.
    """
    model = without_wrappers(model)
    _require_whole(model)
    return model


def without_wrappers(model: nn.Module) -> nn.Module:
    """The same, also where its parameters are cut up."""
    require_module(model)
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def _inside(model: Any) -> nn.Module | None:
    """The module that a wrapper calls; None for anything else."""
    for kind, attribute in _BY_ATTRIBUTE.items():
        if isinstance(model, kind):
            inner: nn.Module = getattr(model, attribute)
            return inner
    original = getattr(model, "_orig_mod", None)  # of torch.compile
    if isinstance(original, nn.Module):
        return original
    config = getattr(model, "active_peft_config", None)
    if config is not None and hasattr(model, "get_base_model") and not config.is_prompt_learning:
        base: nn.Module = model.get_base_model()
        return base if base is not model else None
    return None


def _require_whole(model: nn.Module) -> None:
    """Raises ValueError for a module that has only a part of its parameters, such as a sharded one."""
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise ValueError(_SHARDED.format(what=f"FullyShardedDataParallel {name!r}" if name else "one by FSDP"))
    for name, parameter in model.named_parameters():
        if is_cut_up(parameter):
            raise ValueError(_SHARDED.format(what=f"{name!r} as a {type(parameter.data).__name__}"))


_SHARDED = (
    "model: expected whole parameters in this process, got {what}, whose parameters are cut up over processes; pass "
    "process_group=, whose ranks gather them if they are DTensors (fully_shard, parallelize_module), or write "
    "whole.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))) with the "
    "functions of torch.distributed.checkpoint.state_dict, and measure `whole`, a model that is not sharded"
)
