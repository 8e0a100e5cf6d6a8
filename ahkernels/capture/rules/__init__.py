"""Rules: each forms the factors of one kind of module from its input and the gradients at its output.

A rule is registered for an exact module type. Each family of modules has a file here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

# One tensor [n, ...], or a tuple of tensors whose first is one.
Recorded: TypeAlias = Tensor | tuple[Tensor | None, ...]


class Rule(Protocol):
    """The methods that capture calls for one kind of module; `register_rule` says which kind.

    A use of the module, which is one call of it, has p positions at which its weights act. At each position, the
    gradient of the weights is the outer product of a backward factor g [m] and a forward factor a [d]. So the kernel of
    the module is a sum over pairs of positions, in which each pair adds <a, a'> <g, g'> (equation 9 of the paper).

    Example:
        A rule for a module that scales each feature. It has few parameters, so that its Jacobian itself is used:

        >>> import torch
        >>> import ahkernels as ah
        >>> class Scale(torch.nn.Module):
        ...     def __init__(self, size):
        ...         super().__init__()
        ...         self.weight = torch.nn.Parameter(torch.ones(size))
        ...
        ...     def forward(self, x):
        ...         return x * self.weight
        >>> class ScaleRule:
        ...     def parameters(self, module):
        ...         return ["weight"]
        ...
        ...     def record(self, module, args, kwargs):
        ...         return args[0]
        ...
        ...     def factors(self, module, recorded, gradient):
        ...         return recorded.new_empty(len(recorded), 1, 0), (gradient * recorded).unsqueeze(2)
        ...
        ...     def has_bias(self, module):
        ...         return True
        >>> ah.register_rule(Scale, ScaleRule())
        >>> ah.tangent_kernels(torch.nn.Sequential(torch.nn.Linear(4, 3), Scale(3)), torch.randn(5, 4))["1"].shape
        torch.Size([15, 15])
    """

    def parameters(self, module: Any) -> list[str]:
        """Lists the parameters that the rule accounts for; a module with others or fewer takes the fallback.

        Args:
            module: A module of the registered type, as in all methods.

        Returns:
            Their names in the module.
        """
        ...

    def record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recorded | None:
        """Selects what to keep of the arguments of one call.

        Args:
            module: The module.
            args: The positional arguments of the call.
            kwargs: Its keyword arguments.

        Returns:
            A tensor [n, ...], or a tuple of tensors and None whose first is one; None if the rule does not apply to
            this call, so that the layer takes the fallback.
        """
        ...

    def factors(self, module: Any, recorded: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Forms the factors of one call.

        Args:
            module: The module.
            recorded: What `record` returned, copied.
            gradient: The gradients at the output of the call, or at its first output: [r, *output shape] for r
                cotangents. A `RuleOfAllOutputs` gets those at all outputs.

        Returns:
            The forward factor a [n, p, d] and the backward factor g [r, n, p, m] at the p positions of the call. A
            one-hot a may be given as integers [n, p, 1] that say where the ones are, with -1 for none. A rule may
            return the Jacobian instead: then a is empty, [n, 1, 0], g is the Jacobian [r, n, 1, parameters], and
            `has_bias` is True, since the forward Gram has to be one.
        """
        ...

    def has_bias(self, module: Any) -> bool:
        """Tells whether b = 1 is added to the forward Gram, as a bias has it."""
        ...


@runtime_checkable
class RuleOfAllOutputs(Rule, Protocol):
    """A rule that accounts for the gradients at all outputs of a module, such as the last state of a recurrence.

    Its `factors` gets them joined, [r, n, numbers]: the numbers of one output for a sample, and then those of the next.
    A call of the module may take its parameters several times.
    """

    def sample_dimensions(self, module: Any) -> tuple[int, ...]:
        """Lists the dimension of the samples in each output."""
        ...


_RULES: dict[type[nn.Module], Rule] = {}


def register_rule(module_type: type[nn.Module], rule: Rule) -> None:
    """Uses a rule for modules of exactly this type, in all later captures of this process.

    Subclasses are not included, since they may compute something else. A rule that was registered before for the same
    type is replaced.

    Args:
        module_type: The type of module.
        rule: An object with the methods of `Rule`.

    Raises:
        TypeError: If `module_type` is not a type of module, or `rule` lacks a method of `Rule`.

    Example:
        A subclass that computes what its base class does may have the rule of its base class:

        >>> import torch
        >>> import ahkernels as ah
        >>> from ahkernels.capture.rules.linear import LinearRule
        >>> class Dense(torch.nn.Linear):
        ...     pass
        >>> model = torch.nn.Sequential(Dense(4, 3))
        >>> ah.explain(model, torch.randn(5, 4))[0].route
        'fallback'
        >>> ah.register_rule(Dense, LinearRule())
        >>> ah.explain(model, torch.randn(5, 4))[0].route
        'factors'
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise TypeError(f"module_type: expected a subclass of torch.nn.Module, got {module_type!r}")
    methods = ("parameters", "record", "factors", "has_bias")
    missing = [name for name in methods if not callable(getattr(rule, name, None))]
    if missing:
        raise TypeError(f"rule: expected the methods of ahkernels.capture.Rule, got one without {', '.join(missing)}")
    _RULES[module_type] = rule


def rule_for(model: nn.Module, name: str) -> tuple[nn.Module, Rule | None]:
    """Finds the module whose calls use the parameters of a named module, and the rule for them.

    That is the named module itself, unless its container uses its parameters without calling it.

    Args:
        model: The network.
        name: The name of a module in `model.named_modules()`.

    Returns:
        The module and its rule; None where there is no rule.
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
    recurrent,
    transposed_convolution,
)

for _family in (attention, convolution, embedding, linear, norms, recurrent, transposed_convolution):
    _RULES |= _family.RULES
# Rules for modules, by type of container and name in it, whose parameters their container uses without calling them.
_UNCALLED: Mapping[tuple[type[nn.Module], str], Rule] = attention.UNCALLED_RULES
