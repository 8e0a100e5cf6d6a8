"""How f(x) comes from a model: a call of it as its user would make it, and the outputs in what it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ahkernels.autocast import DEVICES
from ahkernels.capture.batch import Batch
from ahkernels.named_parts import named_parts

# From what the model returns to its outputs [n, o].
OutputOf: TypeAlias = Callable[[Any], Tensor]

_LINE = "write output=lambda returned: returned[...] with the choice that gives [n, o]"


@dataclass(frozen=True)
class Forward:
    """The call of a model.

    Attributes:
        output: Takes the outputs [n, o] from what the model returns; None where they are obvious: a tensor [n, o], a
            tensor [n] of one output, what has `.logits`, or a structure with a single tensor.
        autocast: The device type and dtype of the autocast region that the user is in; None outside.
    """

    output: OutputOf | None = None
    autocast: tuple[str, torch.dtype] | None = None

    @classmethod
    def here(cls, output: OutputOf | None, device: torch.device) -> Forward:
        """A call as it would be made here, with the same autocast."""
        if device.type not in DEVICES or not torch.is_autocast_enabled(device.type):
            return cls(output)
        return cls(output, (device.type, torch.get_autocast_dtype(device.type)))

    def __call__(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Computes f(x) [k, o] for k samples.

        Raises:
            ValueError: If the outputs are no tensor [k, o] with o > 0, or which of several they are is not obvious.
        """
        args, kwargs = batch.arguments
        with self._region():
            returned = model(*args, **kwargs)
            if self.output is not None:
                return _checked(self.output(returned), len(batch), "output(model(x))")
        return _checked(_obvious(returned), len(batch), "model(x)")

    def _region(self) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        # What the region has cached may have come from parameters that have changed since.
        return torch.autocast(self.autocast[0], dtype=self.autocast[1], cache_enabled=False)


def _obvious(returned: object) -> object:
    """The outputs in what a model returned.

    Raises:
        ValueError: If there are several tensors, and none is called logits.
    """
    if isinstance(returned, Tensor):
        return returned
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    tensors = list(_tensors(returned, ""))
    if len(tensors) == 1:
        return tensors[0][1]
    if not tensors:
        return returned
    found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors[:8])
    raise ValueError(
        f"output: expected a callable that takes the outputs [n, o] from what the model returns, since it returns "
        f"{type(returned).__name__} with several tensors ({found}); write "
        f"output=lambda returned: returned{tensors[0][0]} for the first of them"
    )


def _tensors(returned: object, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a model returned, with the expressions that take them."""
    if isinstance(returned, Tensor):
        yield name, returned
    elif isinstance(returned, (Mapping, tuple, list)):
        for of_part, part in named_parts(returned, name):
            yield from _tensors(part, of_part)
    elif dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        for field in dataclasses.fields(returned):
            yield from _tensors(getattr(returned, field.name), f"{name}.{field.name}")


def _checked(output: object, n: int, what: str) -> Tensor:
    """The outputs [n, o], also where they came as [n]."""
    samples = "one sample" if n == 1 else f"{n} samples"
    expected = f"model: expected {what} to be a tensor [{n}, o] for {samples}"
    if not isinstance(output, Tensor):
        raise ValueError(f"{expected}, got {type(output).__name__}; {_LINE}")
    if output.dim() == 1 and len(output) == n:
        output = output.unsqueeze(1)
    if output.dim() != 2 or output.shape[0] != n or output.shape[1] == 0:
        raise ValueError(f"{expected}, got shape {list(output.shape)}; {_advice(output, n)}")
    if not output.is_floating_point():
        raise ValueError(
            f"model: expected {what} to have real floating-point outputs, got dtype {output.dtype}; return what comes "
            "before .argmax() or .round(), or .real of what is complex"
        )
    return output


def _advice(output: Tensor, n: int) -> str:
    """What to write where the outputs are not [n, o]."""
    if n == 1 and output.dim() < 2:
        return "a .squeeze() without a dimension removes that of a single sample; write .squeeze(1), say"
    if output.shape[:1] != (n,):
        return "keep a row for each sample: write .flatten(1) for .flatten(), or .mean(1) for .mean(), say"
    return _LINE
