"""Selection of layers: the modules that the `layers` argument chooses, their parameters, and the rules for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from ahkernels.capture.choice import ROOT, Choosable, Layers, choose, shown_name
from ahkernels.capture.guard import require_module
from ahkernels.capture.rules import Candidate, Rule, candidates


@dataclass(frozen=True)
class Layer:
    """A module and its own parameters.

    Attributes:
        name: Its name in `model.named_modules()`, or `ROOT` for the model itself.
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
    """Finds the layers that the argument `layers` chooses.

    Args:
        model: The network.
        layers: See `CaptureOptions`.

    Returns:
        The layers and their groups.

    Raises:
        TypeError: If `model` or `layers` has another type.
        ValueError: If `layers` chooses nothing, the model has no parameters or a module with the name of the root, a
            parameter is not initialised, or that of a layer not real.
    """
    require_module(model)
    owned: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"model: expected initialised parameters, got {name!r} of a lazy module; write model(x) once before"
            )
        owned.setdefault(_owner(name), []).append(name)
    if not owned:
        raise ValueError(
            f"model: expected modules with parameters, got {type(model).__name__} without any; write "
            "nn.ModuleList(...) for a list of modules, and nn.Parameter(...) for a tensor"
        )
    if "" in owned and ROOT in owned:
        raise ValueError(
            f"model: expected no module named {ROOT!r}, which is the name of the parameters of the model itself, got "
            "one; give it another name"
        )
    tied = _tied(model)
    paths = [path for path, _ in model.named_modules() if path in owned]
    groups = choose([_choosable(model, path, owned[path]) for path in paths], layers)
    selected = {name for members in groups.values() for name in members}
    found = []
    for path in paths:
        if shown_name(path) not in selected:
            continue
        for own in owned[path]:
            dtype = model.get_parameter(own).dtype
            if not dtype.is_floating_point:
                raise ValueError(
                    f"model: expected real floating-point parameters, got {own!r} of dtype {dtype}; write layers=[...] "
                    f"without {shown_name(path)!r}"
                )
        local = {parameter.removeprefix(f"{path}.") for parameter in owned[path]}
        first, *others = candidates(model, path, local, tied=not tied.isdisjoint(owned[path]))
        own_layer = shown_name(path), first.module, tuple(owned[path]), first.rule
        found.append(Layer(*own_layer, first.doubtful, tuple(others)))
    return Selection(found, groups)


def _choosable(model: nn.Module, path: str, parameters: list[str]) -> Choosable:
    trainable = any(model.get_parameter(name).requires_grad for name in parameters)
    return Choosable(shown_name(path), model.get_submodule(path), trainable)


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
