"""What a model is called with: tensors [n, ...] in the structure in which the user gave them, cut by samples as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ahkernels.factors import is_finite

# A tensor, a tuple of positional arguments, a mapping of keywords, or a dataclass: of tensors [n, ...] and constants.
Inputs: TypeAlias = Any

_CONSTANTS = (bool, int, float, str, type(None), torch.dtype, torch.device)


class Batch:
    """Samples for a model.

    Args:
        x: A tensor [n, ...], which is the only argument of the model; a tuple of positional arguments; a mapping of
            keywords, such as what a tokenizer returns; or a dataclass, which is the only argument. They consist of
            tensors whose first dimension is n, and of constants that all samples share; nested if need be.

    Attributes:
        tensors: All tensors, in the order of the structure.
        names: What they are called in messages, such as "x['input_ids']".

    Raises:
        TypeError: If there is anything else in x, or no tensor; the message names it.
        ValueError: If there is no sample, or tensors differ in their numbers of samples; the message names them.
    """

    def __init__(self, x: Inputs) -> None:
        found = list(_leaves(x, "x"))
        self._structure = x
        self.names = tuple(name for name, _ in found)
        # Autograd takes no tensors of inference mode.
        self.tensors = tuple(one.clone() if one.is_inference() else one.detach() for _, one in found)
        if not found:
            raise TypeError(f"x: expected at least one tensor [n, ...], got {type(x).__name__} without any")
        first = self.names[0]
        for name, tensor in zip(self.names, self.tensors, strict=True):
            if tensor.layout != torch.strided or tensor.is_nested:
                raise TypeError(
                    f"{name}: expected a dense tensor [n, ...], got layout {tensor.layout}; make it dense "
                    "(x.to_dense())"
                )
            if tensor.dim() == 0 or tensor.shape[0] == 0:
                raise ValueError(f"{name}: expected at least one sample, got shape {list(tensor.shape)}")
            if tensor.shape[0] != len(self):
                raise ValueError(
                    f"{name}: expected {len(self)} samples in the first dimension, as in {first}, got shape "
                    f"{list(tensor.shape)}; write t.expand({len(self)}, *t.shape) for a tensor t that all samples share"
                )

    def __len__(self) -> int:
        """The number n of samples."""
        return self.tensors[0].shape[0]

    def __getitem__(self, samples: slice | Sequence[int]) -> Batch:
        """Some of the samples."""
        return self.with_tensors([rows_of(tensor, samples) for tensor in self.tensors])

    @property
    def device(self) -> torch.device:
        """Device of the first tensor."""
        return self.tensors[0].device

    @property
    def key(self) -> Hashable:
        """All that the samples of two batches have in common if this is equal: structure, constants, shapes, dtypes."""
        kinds = [(tuple(one.shape), one.dtype, one.device) for one in self.tensors]
        return *self.names, *kinds, self.constants

    @property
    def constants(self) -> str:
        """The structure and what all samples share, as text."""
        return str(_rebuilt(self._structure, lambda _: None))

    @property
    def kinds(self) -> list[str]:
        """The name, shape and dtype of each tensor, which those of all ranks have in common if they can be joined."""
        named = zip(self.names, self.tensors, strict=True)
        return [f"{name} [n, *{list(one.shape[1:])}] in {one.dtype}" for name, one in named]

    @property
    def structure(self) -> Inputs:
        """The tensors in the structure in which the user gave them; mappings become dicts."""
        tensors = iter(self.tensors)
        return _rebuilt(self._structure, lambda _: next(tensors))

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and the keyword arguments of a call of the model."""
        x = self.structure
        if isinstance(x, tuple):
            return x, {}
        return ((), dict(x)) if isinstance(x, Mapping) else ((x,), {})

    def with_tensors(self, tensors: Sequence[Tensor]) -> Batch:
        """The same structure with other tensors."""
        batch = object.__new__(Batch)
        batch._structure, batch.names, batch.tensors = self._structure, self.names, tuple(tensors)
        return batch

    def map_floats(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Applies a function to each floating-point tensor."""
        return self.with_tensors([function(one) if one.is_floating_point() else one for one in self.tensors])

    def require_fit(self, model: nn.Module) -> None:
        """Raises ValueError if the samples are not finite, or on another device than the model.

        A mask may hold infinities, which is why they are refused only in a single tensor.
        """
        parameters = [one for one in model.parameters() if one.is_floating_point()]
        for name, tensor in zip(self.names, self.tensors, strict=True):
            if all(tensor.device != one.device for one in parameters):
                raise ValueError(
                    f"{name}: expected the device of the model, {parameters[0].device}, got {tensor.device}; write "
                    f"x.to({str(parameters[0].device)!r})"
                )
            if not tensor.is_floating_point():
                continue
            if len(self.tensors) == 1:
                if not is_finite(tensor):
                    raise ValueError(
                        f"{name}: expected finite numbers, got nan or inf; leave those samples out: "
                        "x[x.flatten(1).isfinite().all(1)]"
                    )
            elif bool(tensor.isnan().any()):
                raise ValueError(f"{name}: expected numbers, got nan")

    def of_another_dtype(self, model: nn.Module) -> str | None:
        """What is wrong with the first tensor whose dtype is that of no parameter; None if there is none."""
        dtypes = list(dict.fromkeys(one.dtype for one in model.parameters() if one.is_floating_point()))
        for name, tensor in zip(self.names, self.tensors, strict=True):
            if tensor.is_floating_point() and tensor.dtype not in dtypes:
                return (
                    f"{name}: expected the dtype of the model, {dtypes[0]}, got {tensor.dtype}; write x.to({dtypes[0]})"
                )
        return None


def rows_of(tensor: Tensor, samples: slice | Sequence[int]) -> Tensor:
    """Some rows of a tensor; a list of few is no index, which a device would have to wait for."""
    if isinstance(samples, slice):
        return tensor[samples]
    return torch.stack([tensor[index] for index in samples]) if samples else tensor[:0]


def is_empty(x: Inputs) -> bool:
    """Whether x has tensors, and no sample in any of them.

    Raises:
        TypeError: See `Batch`.
    """
    tensors = [one for _, one in _leaves(x, "x")]
    return bool(tensors) and all(one.dim() > 0 and one.shape[0] == 0 for one in tensors)


def _leaves(x: Inputs, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in x with their names.

    Raises:
        TypeError: For anything that is neither a tensor, a structure of them nor a constant.
    """
    if isinstance(x, Tensor):
        yield name, x
    elif isinstance(x, (DataLoader, Dataset)):
        raise TypeError(
            f"{name}: expected tensors [n, ...], got {type(x).__name__}; write "
            "x, y = ahkernels.first_samples(data, 256) for the first 256 samples"
        )
    elif isinstance(x, Mapping):
        for key, value in x.items():
            if not isinstance(key, str):
                raise TypeError(f"{name}: expected names of arguments, got the key {key!r}")
            yield from _leaves(value, f"{name}[{key!r}]")
    elif isinstance(x, tuple):
        for place, value in enumerate(x):
            yield from _leaves(value, f"{name}[{place}]")
    elif dataclasses.is_dataclass(x) and not isinstance(x, type):
        for field in dataclasses.fields(x):
            yield from _leaves(getattr(x, field.name), f"{name}.{field.name}")
    elif not isinstance(x, _CONSTANTS) or name == "x":
        remedy = "; write tuple(x) for positional arguments, torch.stack(x) for samples" if isinstance(x, list) else ""
        raise TypeError(
            f"{name}: expected a tensor [n, ...], or a tuple, dict or dataclass of them, got {type(x).__name__}{remedy}"
        )


def _rebuilt(x: Inputs, tensor: Callable[[Tensor], Any]) -> Any:
    """The structure of x with a function of each tensor; mappings become dicts."""
    if isinstance(x, Tensor):
        return tensor(x)
    if isinstance(x, Mapping):
        return {key: _rebuilt(value, tensor) for key, value in x.items()}
    if isinstance(x, tuple):
        values = [_rebuilt(value, tensor) for value in x]
        return type(x)(*values) if hasattr(x, "_fields") else tuple(values)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return dataclasses.replace(x, **{f.name: _rebuilt(getattr(x, f.name), tensor) for f in dataclasses.fields(x)})
    return x
