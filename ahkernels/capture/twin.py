"""The twin of a model: new module objects with the same tensors, so that no call of it can change the model.

Attributes that a forward pass stores, hooks and flags stay with the twin, which is dropped after the call. There is
nothing to undo on the model, whatever exception, signal or thread comes.
"""

from __future__ import annotations

import functools
import random
import types
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from copy import copy as shallow_copy
from copy import deepcopy
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.utils.hooks import RemovableHandle

_PLAIN = frozenset((bool, int, float, str, type(None)))
_TABLES = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_GENERATORS = (torch.Generator, random.Random, numpy.random.Generator, numpy.random.RandomState)
_MOST_OBJECTS = 10_000  # beyond it they are shared, such as those of a whole program
# Packages whose objects drive the training: a LightningModule refers to its trainer, and so to data and optimisers.
_DRIVERS = frozenset(("lightning", "lightning_fabric", "pytorch_lightning"))


class Twin:
    """A twin of a model.

    Its parameters are those of the model where they are trained. A parameter that is frozen is replaced by a leaf with
    the same memory, so that gradients flow through it. Buffers are copies, which a call may change.

    Args:
        model: The model, which is only read.
        evaluating: Whether all modules of the twin are in eval mode; otherwise each is in the mode of its original.
        own_leaves: Whether trained parameters are replaced too, so that a backward pass in forward leaves the gradients
            of the model alone.
        dtype: That of all floating-point parameters and buffers, which are then copies; None for those of the model.

    Attributes:
        model: The twin itself.
        generators: The generators of random numbers that the model has, copied with their states.
        adopted: Modules that are none of the model's, and that its attributes reach.
        replaced: The names of parameters that are replaced, by the id of the original.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        evaluating: bool = False,
        own_leaves: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._copies: dict[int, Any] = {}  # by the id of the original
        self._storages: dict[int, torch.UntypedStorage] = {}  # copies, by the address of the original
        self._objects = 0
        self._evaluating = evaluating
        self.generators: list[Any] = []
        self.adopted: list[nn.Module] = []
        self._originals: list[Any] = []  # kept, so that no id is used again
        modules = list(model.modules())
        for module in modules:
            shared = isinstance(module, torch.jit.ScriptModule)  # its state is not in Python
            self._remember(module, module if shared else object.__new__(type(module)))
        self.replaced: dict[int, str] = {}
        for name, parameter in model.named_parameters():
            if self._remember(parameter, _trained(parameter, own_leaves, dtype)) is not parameter:
                self.replaced[id(parameter)] = name
        for module in modules:
            for buffer in module._buffers.values():
                if buffer is not None and id(buffer) not in self._copies:
                    self._remember(buffer, self._clone(_of_dtype(buffer, dtype)))
        for module in modules:
            self._fill(module)
        self.model: nn.Module = self._copies[id(model)]

    def advance(self, times: int) -> None:
        """Goes on to another state of each generator, one for each number of times."""
        for generator in self.generators:
            for _ in range(1 + times):
                if isinstance(generator, torch.Generator):
                    torch.rand(1, generator=generator, device=generator.device)
                else:
                    generator.random()

    def of(self, module: nn.Module) -> nn.Module:
        """The twin of one of the model's modules."""
        twin: nn.Module = self._copies[id(module)]
        return twin

    def _fill(self, module: nn.Module) -> None:
        """Gives the twin of a module its attributes."""
        twin = self._copies[id(module)]
        if twin is module:
            return
        vars(twin).update(self._state(module))
        vars(twin)["_compiled_call_impl"] = None  # of module.compile(), which would call the module itself
        if "_orig_mod" in module._modules:  # of torch.compile
            vars(twin)["forward"] = functools.partial(_call, twin._modules["_orig_mod"])
        self._fill_slots(module, twin)
        if self._evaluating:
            vars(twin)["training"] = False
        if isinstance(twin, nn.RNNBase) and not twin.training:
            # Dropout is all that training changes in it, and cuDNN has no backward pass in eval mode.
            vars(twin).update(training=True, dropout=0.0)

    def _fill_slots(self, original: Any, copy: Any) -> None:
        kind: Any = type(original)
        for name in _slots(kind):
            if hasattr(original, name):
                setattr(copy, name, self._copy(getattr(original, name)))

    def _adopted(self, module: nn.Module) -> nn.Module:
        """The twin of a module that is no module of the model, such as one in a plain list."""
        found = [one for one in module.modules() if id(one) not in self._copies]
        self.adopted += found
        for one in found:
            self._remember(one, one if isinstance(one, torch.jit.ScriptModule) else object.__new__(type(one)))
        for one in found:
            self._fill(one)
        twin: nn.Module = self._copies[id(module)]
        return twin

    def _clone(self, tensor: Tensor) -> Tensor:
        """A copy; of tensors that share memory the copies do so, too."""
        if tensor.layout != torch.strided or type(tensor) not in (Tensor, nn.Buffer) or tensor.is_inference():
            return tensor.clone()
        storage = tensor.untyped_storage()
        if storage.nbytes() == tensor.nbytes and storage.data_ptr() not in self._storages:
            copy = tensor.clone(memory_format=torch.preserve_format)
            if copy.stride() == tensor.stride():
                self._storages[storage.data_ptr()] = copy.untyped_storage()
                return _with_attributes(copy, tensor)
        if storage.data_ptr() not in self._storages:
            self._storages[storage.data_ptr()] = storage.clone()  # type: ignore[no-untyped-call]
        copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        copy.set_(self._storages[storage.data_ptr()], tensor.storage_offset(), tensor.shape, tensor.stride())
        return _with_attributes(copy, tensor)

    def _state(self, module: nn.Module) -> dict[str, Any]:
        """The attributes of a module for its twin."""
        state = dict(vars(module))
        for name, value in state.items():
            if type(value) in _PLAIN:
                continue
            # Most are empty tables of hooks, which nothing else refers to.
            state[name] = type(value)() if name in _TABLES and not value else self._copy(value)
        return state

    def _plain_object(self, value: Any) -> Any:
        """An object that has nothing but attributes, such as a cache; shared where there are too many of them."""
        self._objects += 1
        if self._objects > _MOST_OBJECTS:
            return value
        try:
            copy = types.SimpleNamespace() if isinstance(value, types.SimpleNamespace) else object.__new__(type(value))
        except TypeError:  # an object of C, with more than attributes
            return value
        self._remember(value, copy)  # before its attributes, which may refer to it
        vars(copy).update({name: self._copy(one) for name, one in vars(value).items()})
        self._fill_slots(value, copy)
        return copy

    def _function(self, value: types.FunctionType) -> Any:
        """A function whose closure and defaults refer to the twin, and keep what it stores in them."""
        cells = [self._cell(cell) for cell in value.__closure__ or ()]
        copy = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, tuple(cells))
        self._remember(value, copy)  # before its defaults, which may refer to it
        copy.__defaults__, copy.__kwdefaults__ = self._copy(value.__defaults__), self._copy(value.__kwdefaults__)
        copy.__dict__.update(value.__dict__)
        copy.__qualname__, copy.__module__ = value.__qualname__, value.__module__
        return copy

    def _cell(self, cell: types.CellType) -> types.CellType:
        if id(cell) in self._copies:
            found: types.CellType = self._copies[id(cell)]
            return found
        copy = self._remember(cell, types.CellType())
        with suppress(ValueError):  # of a variable that has no value yet
            copy.cell_contents = self._copy(cell.cell_contents)
        return copy  # type: ignore[no-any-return]

    def _remember(self, original: Any, copy: Any) -> Any:
        self._copies[id(original)] = copy
        self._originals.append(original)
        return copy

    def _copy(self, value: Any) -> Any:
        """An attribute of a module for its twin: what refers to the model refers to the twin, all else is shared."""
        if id(value) in self._copies:
            return self._copies[id(value)]
        try:
            return self._new_copy(value)
        except RecursionError:  # of a long chain of objects
            return value

    def _new_copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            # torch.func leaves tensors of its own in nn.RNN, which have no memory and are replaced in the next call.
            shared = value.requires_grad or _functorch.is_functorch_wrapped_tensor(value)
            return value if shared else self._remember(value, self._clone(value))
        if isinstance(value, nn.Module):
            return self._adopted(value)
        if isinstance(value, _CONTAINERS):
            return self._container(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self._copy(value.__self__))
        if type(value) is functools.partial:
            arguments, keywords = self._copy(value.args), self._copy(value.keywords)
            return functools.partial(self._copy(value.func), *arguments, **keywords)
        if isinstance(value, types.FunctionType) and (value.__closure__ or value.__defaults__ or value.__kwdefaults__):
            return value if _of_torch(value) else self._function(value)
        if isinstance(value, numpy.ndarray):
            return self._remember(value, value.copy())
        if isinstance(value, _GENERATORS):
            copy = value.clone_state() if isinstance(value, torch.Generator) else deepcopy(value)
            self.generators.append(copy)
            return self._remember(value, copy)
        if isinstance(value, RemovableHandle):  # of a hook that removes itself
            table = value.hooks_dict_ref()
            copy = self._remember(value, shallow_copy(value))
            copy.hooks_dict_ref = weakref.ref(self._copy(table)) if table is not None else value.hooks_dict_ref
            return copy
        return self._plain_object(value) if _is_plain(value) else value

    def _container(self, value: Any) -> Any:
        if _PLAIN.issuperset(map(type, value)) and (
            not isinstance(value, dict) or _PLAIN.issuperset(map(type, value.values()))
        ):
            return value if isinstance(value, (tuple, frozenset)) else self._remember(value, shallow_copy(value))
        if isinstance(value, tuple):
            return self._remember(value, tuple.__new__(type(value), [self._copy(one) for one in value]))
        if isinstance(value, frozenset):
            return self._remember(value, type(value)(self._copy(one) for one in value))
        copy = self._remember(value, shallow_copy(value))  # before its contents, which may contain it
        if isinstance(value, dict):
            dict.clear(copy)
            for key, one in value.items():
                dict.__setitem__(copy, self._copies.get(id(key), key), self._copy(one))
        elif isinstance(value, set):
            copy.clear()
            copy.update(self._copy(one) for one in value)
        else:
            for index, one in enumerate(value):
                copy[index] = self._copy(one)
        return copy


def _call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)


@functools.lru_cache(maxsize=1024)
def _slots(kind: Any) -> list[str]:
    """The names of the attributes that objects of a type have beside their dict."""
    names: list[str] = []
    for base in kind.__mro__:
        slots: str | Iterable[str] = vars(base).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _with_attributes(copy: Tensor, tensor: Tensor) -> Tensor:
    """Gives a copy the attributes that Python code has set on a tensor."""
    vars(copy).update(vars(tensor))
    return copy


def _of_torch(value: Any) -> bool:
    return _package(value) == "torch"


def _package(value: Any) -> str:
    """Of a function or a class."""
    return str(value.__module__).partition(".")[0]


def _is_plain(value: Any) -> bool:
    """Whether all of an object is in its attributes, and it is nobody else's."""
    kind = type(value)
    if isinstance(value, types.SimpleNamespace):
        return True
    if isinstance(value, (nn.Module, type, types.ModuleType)) or not hasattr(value, "__dict__") or _of_torch(kind):
        return False
    if not _DRIVERS.isdisjoint(map(_package, kind.__mro__)):
        return False
    own = {name for base in kind.__mro__[:-1] for name in vars(base)}
    return own.isdisjoint(("__reduce__", "__reduce_ex__", "__del__"))  # of C, or with a state of its own


def _trained(parameter: nn.Parameter, own_leaf: bool, dtype: torch.dtype | None) -> Tensor:
    """The parameter, or a leaf with its memory that gradients flow through; a copy of what inference mode made.

    A parameter with hooks on its gradient is never given out: the hooks are for training, and would change a gradient.
    """
    values = _of_dtype(parameter.detach(), dtype)
    as_it_is = parameter.requires_grad and not parameter.is_inference() and not parameter._backward_hooks
    if as_it_is and not own_leaf and values.dtype == parameter.dtype:
        return parameter
    leaf = nn.Parameter(values.clone() if values.is_inference() else values)
    return _with_attributes(leaf, parameter)


def _of_dtype(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    return values if dtype is None or not values.is_floating_point() else values.to(dtype)
