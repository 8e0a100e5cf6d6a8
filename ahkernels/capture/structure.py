"""The structure of a model, as far as a capture depends on it, and what earlier captures of the same one found."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules import module as global_tables

from ahkernels.capture.selection import Layer

_KEPT = 16  # structures for each model, such as several shapes of x
_LONGEST, _DEEPEST = 1000, 5  # containers that are looked into; of others it matters which they are
_GLOBAL_HOOKS = [name for name in vars(global_tables) if name.startswith("_global_") and name.endswith("hooks")]


@dataclass
class Known:
    """What captures of one structure found.

    Attributes:
        calls: The number of captures since the last certificate; 0 where there has been none.
        certificate: The differences that the last certificate found, by layer; empty where there has been none.
        without_rule: The layers whose rule has failed.
        one_by_one: Whether the fallback cannot batch its gradients.
    """

    calls: int = 0
    certificate: dict[str, float] = field(default_factory=dict)
    without_rule: set[str] = field(default_factory=set)
    one_by_one: bool = False


_KNOWN: WeakKeyDictionary[nn.Module, dict[Hashable, Known]] = WeakKeyDictionary()


def known(model: nn.Module, x: Tensor, layers: Sequence[Layer], options: Sequence[Hashable]) -> Known:
    """What is known of a model's structure; a new entry where nothing is.

    Args:
        model: The network.
        x: Its inputs [n, ...].
        layers: The selected layers.
        options: What else a capture depends on.
    """
    of_model = _KNOWN.setdefault(model, {})
    rules = [(layer.name, id(layer.rule)) for layer in layers]
    key = (tuple(x.shape), x.dtype, x.device, *rules, *options, *_fingerprint(model))
    if key not in of_model:
        while len(of_model) >= _KEPT:
            of_model.pop(next(iter(of_model)))
        of_model[key] = Known()
    return of_model[key]


def _fingerprint(model: nn.Module) -> Iterator[Hashable]:
    """Identity, flags, hooks, plain attributes and shapes of all modules, but not the values of their tensors."""
    for name in _GLOBAL_HOOKS:
        yield from getattr(global_tables, name)
    for module in model.modules():
        yield id(module)
        yield id(type(module))
        for name, value in vars(module).items():
            if not (isinstance(value, (dict, set)) and not value):  # most tables of a module are empty
                yield name
                yield from _of_attribute(value)


def _of_attribute(value: object, depth: int = 0) -> Iterator[Hashable]:
    if isinstance(value, (bool, int, float, str)):
        yield value
    elif isinstance(value, Tensor):
        hooks = () if value._backward_hooks is None else tuple(value._backward_hooks)
        yield (tuple(value.shape), value.dtype, value.device, value.requires_grad, hooks)
    elif isinstance(value, (dict, list, tuple, set, frozenset)) and len(value) <= _LONGEST and depth < _DEEPEST:
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield key if isinstance(key, (str, int)) else id(key)
            yield from _of_attribute(one, depth + 1)
    else:
        yield id(value)
