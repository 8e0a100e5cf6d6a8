"""Rules: how the factors of one kind of module come from its input and the gradient at its output.

A rule is registered for an exact module type. A family of modules has a file of its own here.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Rule(Protocol):
    """What capture asks of a kind of module."""

    def parameters(self, module: nn.Module) -> list[str]:
        """Names of the parameters the rule accounts for; a module with any other is refused."""
        ...

    def forward_factor(self, module: nn.Module, inputs: tuple[Any, ...], name: str) -> Tensor:
        """a(x), [n, d], from the inputs of one call of the module; raises where the rule does not apply."""
        ...

    def backward_factor(self, module: nn.Module, gradient: Tensor) -> Tensor:
        """g^i(x), [r, n, m], from the gradients at the output of that call, [r, *output shape]."""
        ...

    def has_bias(self, module: nn.Module) -> bool:
        """Whether the kernel has the term of a bias."""
        ...


_RULES: dict[type[nn.Module], Rule] = {}


def register_rule(module_type: type[nn.Module], rule: Rule) -> None:
    """Use `rule` for modules of exactly this type (a subclass may compute something else)."""
    _RULES[module_type] = rule


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of the module's type, or None."""
    return _RULES.get(type(module))


def known_types() -> list[str]:
    """Names of the module types that have a rule."""
    return sorted(module_type.__name__ for module_type in _RULES)


from ahkernels.capture.rules import linear as _linear  # noqa: E402

register_rule(nn.Linear, _linear.LinearRule())
