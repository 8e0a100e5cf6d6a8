"""Rules: how the factors of one kind of module come from its input and the gradient at its output.

A rule is registered for an exact module type. A family of modules has a file of its own here.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Rule(Protocol):
    """What capture asks of a kind of module."""

    def parameters(self, module: nn.Module) -> list[str]:
        """Names of the parameters the rule accounts for; a module with others or fewer takes the fallback."""
        ...

    def record(self, module: nn.Module, inputs: tuple[Any, ...]) -> Tensor | None:
        """What to keep of the inputs of one call, [n, ...]; None where the rule does not apply to it."""
        ...

    def factors(self, module: nn.Module, recorded: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """a(x) [n, p, d] and g^i(x) [r, n, p, m] at the p positions of one call.

        From what was recorded and the gradients at the output of that call, [r, *output shape].
        """
        ...

    def has_bias(self, module: nn.Module) -> bool:
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


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of the module's type, or None."""
    return _RULES.get(type(module))


from ahkernels.capture.rules import convolution as _convolution  # noqa: E402
from ahkernels.capture.rules import linear as _linear  # noqa: E402
from ahkernels.capture.rules import norms as _norms  # noqa: E402

register_rule(nn.Linear, _linear.LinearRule())
_RULES |= dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution.ConvolutionRule())
_RULES |= _norms.RULES
