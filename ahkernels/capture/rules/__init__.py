"""Rules: how the factors of one kind of module come from its input and the gradient at its output.

A rule is registered for an exact module type. A family of modules has a file of its own here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

# One tensor [n, ...], or several of which the first is.
Recorded: TypeAlias = Tensor | tuple[Tensor | None, ...]


class Rule(Protocol):
    """What capture asks of a kind of module."""

    def parameters(self, module: Any) -> list[str]:
        """Names of the parameters the rule accounts for; a module with others or fewer takes the fallback."""
        ...

    def record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recorded | None:
        """What to keep of the arguments of one call; None where the rule does not apply to it."""
        ...

    def factors(self, module: Any, recorded: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """a(x) [n, p, d] and g^i(x) [r, n, p, m] at the p positions of one call.

        From what was recorded and the gradients at the (first) output of that call, [r, *output shape]. d = 0 where g
        is the Jacobian itself, with a bias for its forward Gram of ones.
        """
        ...

    def has_bias(self, module: Any) -> bool:
        """Whether the kernel has the term of a bias."""
        ...


_RULES: dict[type[nn.Module], Rule] = {}


def register_rule(module_type: type[nn.Module], rule: Rule) -> None:
    """Use `rule` for modules of exactly this type (a subclass may compute something else).

    Raises:
        TypeError: where `module_type` is no type of module, or `rule` lacks a method of `Rule`.
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise TypeError(f"module_type: expected a subclass of torch.nn.Module, got {module_type!r}")
    methods = ("parameters", "record", "factors", "has_bias")
    missing = [name for name in methods if not callable(getattr(rule, name, None))]
    if missing:
        raise TypeError(f"rule: expected the methods of ahkernels.capture.Rule, got one without {', '.join(missing)}")
    _RULES[module_type] = rule


def rule_for(model: nn.Module, name: str) -> tuple[nn.Module, Rule | None]:
    """Whose calls to look at for the parameters of the module of a name, and the rule if there is one.

    That is the module, unless its container takes its parameters without calling it.
    """
    parent, _, child = name.rpartition(".")
    container = model.get_submodule(parent)
    if (type(container), child) in _UNCALLED:
        return container, _UNCALLED[type(container), child]
    module = model.get_submodule(name)
    return module, _RULES.get(type(module))


from ahkernels.capture.rules import (  # noqa: E402
    attention,
    convolution,
    embedding,
    linear,
    norms,
    transposed_convolution,
)

for _family in (attention, convolution, embedding, linear, norms, transposed_convolution):
    _RULES |= _family.RULES
# Modules whose parameters their container uses by itself.
_UNCALLED: Mapping[tuple[type[nn.Module], str], Rule] = attention.UNCALLED_RULES
