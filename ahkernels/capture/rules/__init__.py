"""Rules: each forms the factors of one kind of module from its input and the gradients at its output.

A rule is registered for a module type, and each family of modules has a file here. A layer may have several rules as
candidates: first the one for exactly its type, then, as doubtful ones, those of its base classes and those that need no
type at all. A doubtful rule is used only where it is found right (see `ahkernels.capture.doubt`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeGuard

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
        """Lists the parameters that the rule accounts for; it is not used for a module with others or fewer.

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
            this call.
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
            return the Jacobian instead: then a is empty, [n, 1, 0], g is the Jacobian [r, n, 1, parameters] with the
            parameters in the order in which the module has them, and `has_bias` is True, since the forward Gram has to
            be one.
        """
        ...

    def has_bias(self, module: Any) -> bool:
        """Tells whether b = 1 is added to the forward Gram, as a bias has it."""
        ...


class RuleOfAllOutputs(Rule, Protocol):
    """A rule that accounts for the gradients at all outputs of a module, such as the last state of a recurrence.

    Its `factors` gets them joined, [r, n, numbers]: the numbers of one output for a sample, and then those of the next.
    A call of the module may take its parameters several times.
    """

    def sample_dimensions(self, module: Any) -> tuple[int, ...]:
        """Lists the dimension of the samples in each output."""
        ...


def has_all_outputs(rule: Rule) -> TypeGuard[RuleOfAllOutputs]:
    """Whether a rule accounts for all outputs; isinstance with a protocol takes longer than recording a small layer."""
    return hasattr(rule, "sample_dimensions")


_RULES: dict[type[nn.Module], Rule] = {}


def register_rule(module_type: type[nn.Module], rule: Rule | type[nn.Module]) -> None:
    """Uses a rule for modules of exactly this type, in all later captures of this process.

    A rule that was registered before for the same type is replaced. Subclasses may compute something else, so that they
    have the rule only where it is found right on a few samples.

    Args:
        module_type: The type of module.
        rule: An object with the methods of `Rule`; or a type of module whose rule it is.

    Raises:
        TypeError: If `module_type` is not a type of module, or `rule` lacks a method of `Rule`, or is a type of module
            that has no rule.

    Example:
        A module with the attributes of an embedding that computes what an embedding does may have its rule:

        >>> import torch
        >>> import ahkernels as ah
        >>> class Table(torch.nn.Module):
        ...     padding_idx, scale_grad_by_freq = None, False
        ...
        ...     def __init__(self, words, size):
        ...         super().__init__()
        ...         self.weight = torch.nn.Parameter(torch.randn(words, size))
        ...
        ...     def forward(self, x):
        ...         return self.weight[x]
        >>> model = torch.nn.Sequential(Table(1000, 3), torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> x = torch.randint(0, 1000, (5, 4))
        >>> ah.explain(model, x)[0].bytes  # of a Jacobian with 3000 columns
        120000
        >>> ah.register_rule(Table, torch.nn.Embedding)
        >>> ah.explain(model, x)[0].bytes
        2080
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise TypeError(f"module_type: expected a subclass of torch.nn.Module, got {module_type!r}")
    if isinstance(rule, type) and issubclass(rule, nn.Module):
        if rule not in _RULES:
            raise TypeError(f"rule: expected a type of module that has a rule, got {rule.__name__}, which has none")
        rule = _RULES[rule]
    methods = ("parameters", "record", "factors", "has_bias")
    missing = [name for name in methods if not callable(getattr(rule, name, None))]
    if missing:
        raise TypeError(f"rule: expected the methods of ahkernels.capture.Rule, got one without {', '.join(missing)}")
    _RULES[module_type] = rule


@dataclass(frozen=True)
class Candidate:
    """A rule that a layer may have.

    Attributes:
        module: The module whose calls the rule takes to use the parameters: usually that of the layer, otherwise a
            container that uses the parameters of a module in it without calling it.
        rule: The rule.
        doubtful: Whether it has to be checked before it is used, since it is for another type of module than this one.
    """

    module: nn.Module
    rule: Rule
    doubtful: bool


def candidates(model: nn.Module, name: str, parameters: Set[str], *, tied: bool) -> list[Candidate]:
    """Lists the rules that a layer may have, in the order in which they are to be tried.

    Args:
        model: The network.
        name: The name of a module in `model.named_modules()`.
        parameters: The names of the layer's parameters in this module.
        tied: Whether other modules have some of them, too.

    Returns:
        At least one candidate.
    """
    by_graph = in_graph.GRAPH
    parent, _, child = name.rpartition(".")
    container, module = model.get_submodule(parent), model.get_submodule(name)
    by_container = list(_of_bases(container, {kind: rule for (kind, of), rule in _UNCALLED.items() if of == child}))
    if tied:
        return [Candidate(module, by_graph, True)]
    if any(not one.doubtful for one in by_container):  # the module is not called
        return [*_fitting(by_container, parameters), Candidate(container, by_graph, True)]
    by_type = [*by_container, *_of_bases(module, _RULES), *_linear(module)]
    alone = Candidate(module, own_jacobian.OWN_JACOBIAN, True)
    return [*_fitting(by_type, parameters), Candidate(module, by_graph, True), *_fitting([alone], parameters)]


def _of_bases(module: nn.Module, rules: Mapping[type[nn.Module], Rule]) -> Iterator[Candidate]:
    """The rules for the type of a module and, as doubtful ones, for its base classes."""
    for kind in type(module).__mro__:
        if kind in rules:
            yield Candidate(module, rules[kind], kind is not type(module))


def _linear(module: nn.Module) -> Iterator[Candidate]:
    """The rule for linear layers, if a module has a matrix as they do."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if weight is not None and weight.dim() == 2 and not isinstance(module, nn.Linear):
        yield Candidate(module, _RULES[nn.Linear], True)


def _fitting(found: Iterable[Candidate], parameters: Set[str]) -> list[Candidate]:
    """The candidates that account for all parameters of a layer."""
    return [one for one in found if _parameters(one) == parameters]


def _parameters(candidate: Candidate) -> set[str]:
    try:
        return set(candidate.rule.parameters(candidate.module))
    except AttributeError:  # of a subclass that lacks what its base class has
        if not candidate.doubtful:
            raise
        return set()


from ahkernels.capture.rules import (  # noqa: E402
    attention,
    convolution,
    embedding,
    in_graph,
    linear,
    norms,
    own_jacobian,
    prelu,
    recurrent,
    transposed_convolution,
)

for _family in (attention, convolution, embedding, linear, norms, prelu, recurrent, transposed_convolution):
    _RULES |= _family.RULES
# Rules for modules, by type of container and name in it, whose parameters their container uses without calling them.
_UNCALLED: Mapping[tuple[type[nn.Module], str], Rule] = attention.UNCALLED_RULES
