"""Functions of kernels whose samples are spread over processes: all processes call them together."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from ahkernels.distributed.samples import ShardedSamples
from ahkernels.kernel import TangentKernel

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def together(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Has all processes call a function of kernels with the same arguments, and raise where one of them fails.

    Where the samples of the kernels are all in one process, nothing is added.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def on_all_ranks(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        samples = next((one.samples for value in args for one in _kernels(value)), None)
        if not isinstance(samples, ShardedSamples):
            return function(*args, **kwargs)
        with samples.group.watched():
            call = signature.bind(*args, **kwargs)
            _, told = samples.group.collect(lambda: (None, _told(function, call)))
            for rank, one in enumerate(told):
                if one != told[0]:
                    raise ValueError(
                        f"{function.__name__}: expected the same call on every rank, got {told[0]} on rank 0 and {one} "
                        f"on rank {rank}"
                    )
            return function(*args, **kwargs)

    return on_all_ranks


def _kernels(value: object) -> Iterator[TangentKernel]:
    """The kernels in an argument: itself, or those in a mapping or a sequence of them."""
    if isinstance(value, TangentKernel):
        yield value
    elif isinstance(value, Mapping):
        yield from (one for one in value.values() if isinstance(one, TangentKernel))
    elif isinstance(value, (list, tuple)):
        yield from (one for one in value if isinstance(one, TangentKernel))


def _told(function: Callable[..., Any], bound: inspect.BoundArguments) -> str:
    """A call in one line, without what may differ between processes."""
    bound.apply_defaults()
    return f"{function.__name__}({', '.join(f'{name}={_shown(value)}' for name, value in bound.arguments.items())})"


def _shown(value: object) -> str:
    if isinstance(value, TangentKernel):
        return repr(value)
    if isinstance(value, Tensor):
        return f"a tensor of {value.dim()} dimensions"
    if isinstance(value, Mapping):
        return f"{{{', '.join(map(_shown, value.values()))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    return repr(value)
