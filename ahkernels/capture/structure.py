"""The structure of a model, as far as a capture depends on it, and what earlier captures of the same one found."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_tables

from ahkernels.capture.batch import Batch
from ahkernels.capture.forward import Forward
from ahkernels.capture.remembered import RememberedTrace
from ahkernels.capture.selection import Layer

_KEPT = 16  # structures for each model, such as several shapes of x
_DEEPEST, _MOST = 8, 20_000  # how far attributes are looked into; of what is beyond it matters which it is
_GLOBAL_HOOKS = [name for name in vars(global_tables) if name.startswith("_global_") and name.endswith("hooks")]


@dataclass
class Known:
    """What captures of one structure found.

    Attributes:
        calls: The number of captures since the last certificate; 0 where there has been none.
        certificate: The differences that the last certificate found, by layer; empty where there has been none.
        without_rule: The layers whose rule has failed.
        failed: How many of its rules a layer has been found not to have by the calls on a few samples.
        one_by_one: Whether the fallback cannot batch its gradients.
        trace: What may be used again of the last call on a few samples; None for nothing.
    """

    calls: int = 0
    certificate: dict[str, float] = field(default_factory=dict)
    without_rule: set[str] = field(default_factory=set)
    failed: dict[str, int] = field(default_factory=dict)
    one_by_one: bool = False
    trace: RememberedTrace | None = None

    def certifies(self, certify: int) -> bool:
        """Whether the next capture is certified, if one in so many is, or none for 0."""
        return certify > 0 and self.calls % certify == 0


_KNOWN: WeakKeyDictionary[nn.Module, dict[Hashable, Known]] = WeakKeyDictionary()


def known(model: nn.Module, x: Batch, forward: Forward, layers: Sequence[Layer], options: Sequence[Hashable]) -> Known:
    """What is known of a model's structure; a new entry where nothing is.

    Args:
        model: The network.
        x: Its inputs.
        forward: How it is called.
        layers: The selected layers.
        options: What else a capture depends on.
    """
    of_model = _KNOWN.setdefault(model, {})
    try:
        rules = [_Same(rule) for layer in layers for rule in (layer.rule, *(other.rule for other in layer.others))]
        names = [layer.name for layer in layers]
        key: Hashable = (x.key, forward.autocast, *names, *rules, *options, *_Fingerprint(model, forward.output).parts)
        hash(key)
    except Exception:  # of attributes that do not let themselves be read or compared
        key = object()  # like no other
    found = of_model.get(key)
    if found is None:
        found = of_model[key] = Known()
        for old in list(of_model)[:-_KEPT]:
            of_model.pop(old, None)  # another thread may have done so
    return found


class _Same:
    """One and the same object; while it lives, if that can be known."""

    def __init__(self, value: object) -> None:
        self.key = id(value)
        try:
            self.reference: Callable[[], object] = weakref.ref(value)
        except TypeError:
            self.reference = lambda: value

    def __hash__(self) -> int:
        return self.key

    def __eq__(self, other: object) -> bool:
        mine = self.reference()
        return isinstance(other, _Same) and mine is other.reference() and (mine is not None or self is other)


class _Fingerprint:
    """Identity, code, flags, hooks, attributes and shapes of all modules, but not the values of their tensors.

    Args:
        model: The network.
        output: What takes its outputs from what it returns.

    Attributes:
        parts: What has to be equal.
    """

    def __init__(self, model: nn.Module, output: object) -> None:
        self.parts: list[Hashable] = []
        self._seen: dict[int, object] = {}  # by id; kept, so that no id is used again
        self._add(output)
        for name in _GLOBAL_HOOKS:
            self._add(getattr(global_tables, name))
        for module in model.modules():
            kind = type(module)
            self.parts += [_Same(module), _Same(kind), _Same(kind.forward), _Same(kind.__call__)]
            for name, value in vars(module).items():
                if not (isinstance(value, (dict, set)) and not value):  # most tables of a module are empty
                    self.parts.append(name)
                    self._add(value)

    def _add(self, value: Any, depth: int = 0) -> None:
        if isinstance(value, (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)):
            self.parts.append(value)
        elif isinstance(value, Tensor):
            hooks = () if value._backward_hooks is None else tuple(value._backward_hooks)
            self.parts.append((tuple(value.shape), value.dtype, value.device, value.requires_grad, hooks))
        elif id(value) in self._seen or depth > _DEEPEST or len(self.parts) > _MOST or isinstance(value, nn.Module):
            self.parts.append(_Same(value))
        else:
            self._seen[id(value)] = value
            inside = _inside(value)
            self.parts += [_Same(type(value) if inside else value), len(inside)]
            for one in inside:
                self._add(one, depth + 1)


def _inside(value: Any) -> list[Any]:
    """What an object consists of; nothing where its identity has to do."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        return [value.__code__, *cells, value.__defaults__, value.__kwdefaults__]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, (type, types.ModuleType, types.CodeType, types.BuiltinFunctionType)):
        return []
    attributes = getattr(value, "__dict__", None)
    return [*attributes, *attributes.values()] if isinstance(attributes, dict) else []
