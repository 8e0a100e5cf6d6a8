"""Which modules are layers: the `layers` argument, and the modules that cannot be measured."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ahkernels.capture.rules import Rule, known_types, rule_for


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own and the rule for its kind."""

    name: str
    module: nn.Module
    rule: Rule


def select_layers(model: nn.Module, layers: str | Sequence[str] | None) -> list[Layer]:
    """The layers that `layers` names, in the order of the model's modules.

    Raises:
        TypeError: where `model` or `layers` is of another type.
        ValueError: for names that match no layer, with the nearest ones, and for a model without any.
        NotImplementedError: for modules with parameters but no rule, and for tied parameters.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    candidates = {name: module for name, module in model.named_modules() if _own_parameters(module)}
    if not candidates:
        raise ValueError(f"model: expected modules with parameters, got {type(model).__name__} without any")
    chosen = list(candidates) if layers is None else _match(list(candidates), layers)

    found: list[Layer] = []
    missing: list[str] = []
    for name in chosen:
        module = candidates[name]
        rule = rule_for(module)
        if rule is None or set(rule.parameters(module)) != set(_own_parameters(module)):
            missing.append(f"{name or '(the model itself)'} ({type(module).__name__})")
        else:
            found.append(Layer(name, module, rule))
    if missing:
        measurable = [
            name
            for name, module in candidates.items()
            if (rule := rule_for(module)) is not None and set(rule.parameters(module)) == set(_own_parameters(module))
        ]
        advice = f"choose among the others with layers={measurable}" if measurable else "none of its layers has one"
        raise NotImplementedError(
            f"layers: expected modules of a kind that has a rule ({', '.join(known_types())}), got "
            f"{', '.join(missing)}; {advice}"
        )
    _refuse_tied_parameters(model, found)
    return found


def _own_parameters(module: nn.Module) -> list[str]:
    return [name for name, parameter in module._parameters.items() if parameter is not None]


def _match(names: list[str], layers: str | Sequence[str]) -> list[str]:
    patterns = [layers] if isinstance(layers, str) else layers
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"layers: expected names or patterns of layers, got {layers!r}")
    if not patterns:
        raise ValueError("layers: expected at least one name or pattern, got none")
    matched: set[str] = set()
    for pattern in patterns:
        hits = [name for name in names if name == pattern] or fnmatch.filter(names, pattern)
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(
                f"layers: expected names or patterns of layers with parameters, got {pattern!r}, which matches none; "
                f"nearest: {', '.join(map(repr, near))}"
            )
        matched.update(hits)
    return [name for name in names if name in matched]


def _refuse_tied_parameters(model: nn.Module, layers: list[Layer]) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for layer in layers:
        for own in _own_parameters(layer.module):
            names = owners[id(layer.module._parameters[own])]
            distinct = {name.rpartition(".")[0] for name in names}
            modules = {id(model.get_submodule(name)) for name in distinct}
            if len(modules) > 1 or len(names) > len(distinct):
                raise NotImplementedError(
                    f"layers: expected parameters that belong to one module, got one tied between {', '.join(names)}; "
                    "tied parameters are not supported yet: leave these layers out with layers="
                )
