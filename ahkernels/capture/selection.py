"""Selection of layers: the modules that the `layers` argument names, their parameters, and the rules for them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import nn

from ahkernels.capture.guard import require_module
from ahkernels.capture.rules import Candidate, Rule, candidates

# Names or patterns of layers, a dict {group: names or patterns}, or None for all layers that have parameters.
Layers: TypeAlias = str | Sequence[str] | Mapping[str, str | Sequence[str]] | None


@dataclass(frozen=True)
class Layer:
    """A module and its own parameters.

    Attributes:
        name: Its name in `model.named_modules()`.
        module: The module whose calls use the parameters: usually the named one, otherwise its container (see
            `Candidate`).
        parameters: Their names in `model.named_parameters()`. A parameter that is tied between modules belongs to the
            first of them. A parameter that a parametrisation holds belongs to the parametrised module.
        rule: The rule for this kind of module; None where the Jacobian comes from `ahkernels.capture.fallback`.
        doubtful: Whether the rule is for another type of module, so that it has to be checked.
        others: The rules to try where this one does not hold.
    """

    name: str
    module: nn.Module
    parameters: tuple[str, ...]
    rule: Rule | None
    doubtful: bool
    others: tuple[Candidate, ...]

    def without_rule(self) -> Layer:
        """The same layer, whose Jacobian comes from the fallback."""
        return replace(self, rule=None, doubtful=False, others=())

    def with_next_rule(self) -> Layer:
        """The same layer with the next of its rules; without one where none is left."""
        if not self.others:
            return self.without_rule()
        following, *others = self.others
        return replace(
            self, module=following.module, rule=following.rule, doubtful=following.doubtful, others=tuple(others)
        )


@dataclass(frozen=True)
class Selection:
    """The layers to capture, and which of them are measured together.

    Attributes:
        layers: Each layer once, in the order of the model's modules.
        groups: The names of the layers of each group; without groups, each layer alone under its own name.
    """

    layers: list[Layer]
    groups: dict[str, list[str]]


def select_layers(model: nn.Module, layers: Layers) -> Selection:
    """Finds the layers that the argument `layers` names.

    Args:
        model: The network.
        layers: Names, patterns, groups or None.

    Returns:
        The layers and their groups.

    Raises:
        TypeError: If `model` or `layers` has another type.
        ValueError: If a name matches no layer (the message has the nearest names), the model has no parameters, or a
            parameter is not initialised, or that of a layer not real.
    """
    require_module(model)
    owned: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"model: expected initialised parameters, got {name!r} of a lazy module; call the model once"
            )
        owned.setdefault(_owner(name), []).append(name)
    if not owned:
        raise ValueError(f"model: expected modules with parameters, got {type(model).__name__} without any")
    tied = _tied(model)
    names = [name for name, _ in model.named_modules() if name in owned]
    groups = _groups(names, layers)
    selected = {name for members in groups.values() for name in members}
    found = []
    for name in names:
        if name not in selected:
            continue
        for own in owned[name]:
            dtype = model.get_parameter(own).dtype
            if not dtype.is_floating_point:
                raise ValueError(f"model: expected real floating-point parameters, got {own!r} of dtype {dtype}")
        local = {parameter.removeprefix(f"{name}.") for parameter in owned[name]}
        first, *others = candidates(model, name, local, tied=not tied.isdisjoint(owned[name]))
        found.append(Layer(name, first.module, tuple(owned[name]), first.rule, first.doubtful, tuple(others)))
    return Selection(found, groups)


def _owner(parameter: str) -> str:
    """Returns the name of the module that a parameter belongs to."""
    module = parameter.rpartition(".")[0]
    names = module.split(".")
    return ".".join(names[: names.index("parametrizations")]) if "parametrizations" in names else module


def _tied(model: nn.Module) -> set[str]:
    """Finds the parameters that are registered in several places; a module that is used twice registers them once."""
    places: dict[int, set[tuple[int, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), set()).add((id(module), name))
    return {name for name, parameter in model.named_parameters() if len(places[id(parameter)]) > 1}


def _groups(names: list[str], layers: Layers) -> dict[str, list[str]]:
    if layers is None:
        return {name: [name] for name in names}
    if not isinstance(layers, Mapping):
        return {name: [name] for name in _match(names, layers, "layers")}
    if not layers:
        raise ValueError("layers: expected at least one group, got none")
    for name in layers:
        if not isinstance(name, str):
            raise TypeError(f"layers: expected names of groups, got {name!r}")
    return {name: _match(names, patterns, f"layers[{name!r}]") for name, patterns in layers.items()}


def _match(names: list[str], layers: str | Sequence[str], argument: str) -> list[str]:
    patterns = [layers] if isinstance(layers, str) else layers
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"{argument}: expected names or patterns of layers, got {layers!r}")
    if not patterns:
        raise ValueError(f"{argument}: expected at least one name or pattern, got none")
    matched: set[str] = set()
    for pattern in patterns:
        hits = [name for name in names if name == pattern] or fnmatch.filter(names, pattern)
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(
                f"{argument}: expected names or patterns of layers with parameters, got {pattern!r}, which matches "
                f"none; nearest: {', '.join(map(repr, near))}"
            )
        matched.update(hits)
    return [name for name in names if name in matched]
