"""The argument `layers`: names, patterns and types of layers, and groups of them, and which layers it chooses."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from torch import nn

# Names, patterns and types of layers.
Choice: TypeAlias = str | type[nn.Module] | Sequence[str | type[nn.Module]]

# A choice, a dict {group: choice}, or None for all layers that have parameters.
Layers: TypeAlias = Choice | Mapping[str, Choice] | None

# The parameters of the model itself are those of a layer with this name; `named_modules` has none for it.
ROOT = "(root)"

# Chooses the layers that are trained, unless a layer has this name.
_TRAINABLE = "trainable"


class Choosable(NamedTuple):
    """A layer that may be chosen.

    Attributes:
        name: Its name.
        module: The module of this name.
        trainable: Whether one of its parameters requires gradients.
    """

    name: str
    module: nn.Module
    trainable: bool


def shown_name(path: str) -> str:
    """The name that a module of `model.named_modules()` is shown by, which is `ROOT` for the model itself.

    A part that torch.compile has wrapped has the name that it has without.
    """
    return ".".join(name for name in path.split(".") if name != "_orig_mod") or ROOT


def choose(choosable: Sequence[Choosable], layers: Layers) -> dict[str, list[str]]:
    """Finds the layers that the argument `layers` chooses.

    Args:
        choosable: All layers with parameters.
        layers: The argument.

    Returns:
        The names of the layers of each group; without groups, each layer alone under its own name.

    Raises:
        TypeError: If `layers` has another type.
        ValueError: If a name or pattern matches no layer (the message has the nearest names), no layer is of a type
            (the message has the types there are), or none is trained.
    """
    if layers is None:
        return {one.name: [one.name] for one in choosable}
    if not isinstance(layers, Mapping):
        return {name: [name] for name in _chosen(choosable, layers, "layers")}
    if not layers:
        raise ValueError('layers: expected at least one group, got none; write layers={"all": "*"}, say')
    for name in layers:
        if not isinstance(name, str):
            raise TypeError(f"layers: expected names of groups, got {name!r}")
    return {name: _chosen(choosable, choice, f"layers[{name!r}]") for name, choice in layers.items()}


def _chosen(choosable: Sequence[Choosable], choice: Choice, argument: str) -> list[str]:
    """The names of the layers of a choice, in the order of the choosable."""
    parts = [choice] if isinstance(choice, (str, type)) else choice
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) or _is_module_type(part) for part in parts):
        raise TypeError(f"{argument}: expected names, patterns or types of layers, got {choice!r}")
    if not parts:
        raise ValueError(
            f"{argument}: expected at least one name, pattern or type, got none; leave layers= out for all"
        )
    found: set[str] = set()
    for part in parts:
        found.update(_named(choosable, part, argument) if isinstance(part, str) else _typed(choosable, part, argument))
    return [one.name for one in choosable if one.name in found]


def _is_module_type(part: object) -> bool:
    return isinstance(part, type) and issubclass(part, nn.Module)


def _typed(choosable: Sequence[Choosable], kind: type[nn.Module], argument: str) -> list[str]:
    found = [one.name for one in choosable if isinstance(one.module, kind)]
    if not found:
        there = dict.fromkeys(type(one.module).__name__ for one in choosable)
        raise ValueError(
            f"{argument}: expected types of layers with parameters, got {kind.__name__}, which matches none; types: "
            + ", ".join(there)
        )
    return found


def _named(choosable: Sequence[Choosable], pattern: str, argument: str) -> list[str]:
    names = [one.name for one in choosable]
    if pattern in names:
        return [pattern]
    if pattern == _TRAINABLE:
        return _trainable(choosable, argument)
    found = fnmatch.filter(names, pattern)
    if not found:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
        raise ValueError(
            f"{argument}: expected names or patterns of layers with parameters, got {pattern!r}, which matches "
            f"none; nearest: {', '.join(map(repr, near))}"
        )
    return found


def _trainable(choosable: Sequence[Choosable], argument: str) -> list[str]:
    found = [one.name for one in choosable if one.trainable]
    if not found:
        raise ValueError(
            f"{argument}: expected a layer with a parameter that requires gradients, got none; leave layers= out to "
            "measure frozen layers, too"
        )
    return found
