"""Names of layers, and the parameters that each has, found without the package that is tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

ROOT = "(root)"  # the package's name for the parameters of a model itself
PREFIXES = ("", "module.", "_orig_mod.", "base_model.model.")  # of the wrappers whose names the package leaves out


def parameters_by_layer(model: nn.Module) -> dict[str, list[str]]:
    """Names of the parameters of each module that has some; those of a parametrisation belong to its module."""
    layers: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        module = name.rpartition(".")[0].split(".")
        if "parametrizations" in module:
            module = module[: module.index("parametrizations")]
        layers.setdefault(".".join(module), []).append(name)
    return layers


def parameters_of(layers: Mapping[str, list[str]], name: str) -> list[str]:
    """The parameters of a layer, which may lie in a wrapper."""
    for prefix in PREFIXES:
        path = prefix.removesuffix(".") if name == ROOT else prefix + name
        if path in layers:
            return layers[path]
    raise KeyError(name)


def a_few(kinds: Mapping[str, str], marked: Sequence[str] = ()) -> list[str]:
    """The first, the middle and the last layer, and one of the rarest kind, of the marked ones where there are some.

    Args:
        kinds: The kind of each layer by its name, in forward order.
        marked: Names of layers to look at before others.
    """
    names = list(kinds)
    counts = Counter(kinds.values())
    rarest = min(marked or names, key=lambda name: counts[kinds[name]])
    return list(dict.fromkeys([names[0], names[len(names) // 2], names[-1], rarest]))
