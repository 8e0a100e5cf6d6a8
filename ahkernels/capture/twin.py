"""The twin of a model: new module objects with the same tensors, so that no call of it can change the model.

Attributes that a forward pass stores, hooks and flags stay with the twin, which is dropped after the call. There is
nothing to undo on the model, whatever exception, signal or thread comes.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, defaultdict, deque
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = frozenset((bool, int, float, str, type(None)))
_TABLES = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))
_CONTAINERS = (dict, OrderedDict, defaultdict, list, tuple, set, frozenset, deque)


class Twin:
    """A twin of a model.

    Its parameters are those of the model where they are trained. A frozen parameter is replaced by a leaf with the same
    memory, so that gradients flow through it. Buffers are copies, which a call may change.

    Args:
        model: The model, which is only read.
        evaluating: Whether all modules of the twin are in eval mode; otherwise each is in the mode of its original.

    Attributes:
        model: The twin itself.
    """

    def __init__(self, model: nn.Module, *, evaluating: bool = False) -> None:
        self._copies: dict[int, Any] = {}  # by the id of the original
        self._originals: list[Any] = []  # kept, so that no id is used again
        modules = list(model.modules())
        for module in modules:
            shared = isinstance(module, torch.jit.ScriptModule)  # its state is not in Python
            self._remember(module, module if shared else object.__new__(type(module)))
        for module in modules:
            for parameter in module._parameters.values():
                if parameter is not None and id(parameter) not in self._copies:
                    self._remember(parameter, _trained(parameter))
            for buffer in module._buffers.values():
                if buffer is not None and id(buffer) not in self._copies:
                    self._remember(buffer, buffer.clone())
        for module in modules:
            twin = self._copies[id(module)]
            if twin is not module:
                vars(twin).update(self._state(module))
                if evaluating:
                    vars(twin)["training"] = False
        self.model: nn.Module = self._copies[id(model)]

    def of(self, module: nn.Module) -> nn.Module:
        """The twin of one of the model's modules."""
        twin: nn.Module = self._copies[id(module)]
        return twin

    def _state(self, module: nn.Module) -> dict[str, Any]:
        """The attributes of a module for its twin."""
        state = dict(vars(module))
        for name, value in state.items():
            if type(value) in _PLAIN:
                continue
            # Most are empty tables of hooks, which nothing else refers to.
            state[name] = type(value)() if name in _TABLES and not value else self._copy(value)
        return state

    def _remember(self, original: Any, copy: Any) -> Any:
        self._copies[id(original)] = copy
        self._originals.append(original)
        return copy

    def _copy(self, value: Any) -> Any:
        """An attribute of a module for its twin: what refers to the model refers to the twin, all else is shared."""
        if id(value) in self._copies:
            return self._copies[id(value)]
        if isinstance(value, Tensor):
            return value if value.requires_grad else self._remember(value, value.clone())
        if type(value) in _CONTAINERS:
            return self._container(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self._copy(value.__self__))
        if type(value) is functools.partial:
            arguments, keywords = self._copy(value.args), self._copy(value.keywords)
            return functools.partial(self._copy(value.func), *arguments, **keywords)
        return value

    def _container(self, value: Any) -> Any:
        if isinstance(value, (tuple, frozenset)):
            return self._remember(value, type(value)(self._copy(one) for one in value))
        copy: Any = type(value)()
        if isinstance(value, defaultdict):
            copy.default_factory = value.default_factory
        elif isinstance(value, deque):
            copy = deque(maxlen=value.maxlen)
        self._remember(value, copy)  # before its contents, which may contain it
        if isinstance(value, dict):
            copy.update({key: self._copy(one) for key, one in value.items()})
        elif isinstance(value, set):
            copy.update(self._copy(one) for one in value)
        else:
            copy.extend(self._copy(one) for one in value)
        return copy


def _trained(parameter: nn.Parameter) -> Tensor:
    """The parameter, or a leaf with its memory that gradients flow through; a copy of what inference mode made."""
    if parameter.requires_grad and not parameter.is_inference():
        return parameter
    values = parameter.detach()
    return nn.Parameter(values.clone() if values.is_inference() else values)
