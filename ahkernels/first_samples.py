"""The first samples of a data loader or a dataset, as measurements take them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ahkernels.named_parts import named_parts

_LABELS = ("labels", "label")


def first_samples(data: DataLoader[Any] | Dataset[Any], count: int) -> tuple[Any, Any]:
    """Takes the first samples of a data loader or a dataset, each once and in its order.

    Args:
        data: A loader of batches, or a dataset of samples. Each batch or sample is a pair of x and y, or a dict with y
            under "labels" or "label"; anything else is x alone.
        count: How many samples.

    Returns:
        x for `count` samples in the structure of one batch, and y; None where there are no labels. A dataset is
        collated as a loader does by default.

    Raises:
        TypeError: If `data` is neither, or `count` is no integer.
        ValueError: If there are fewer samples, or batches differ in their structure or in the shape of a sample.

    Example:
        >>> import torch, ahkernels as ah
        >>> data = torch.utils.data.TensorDataset(torch.randn(100, 4), torch.arange(100) % 3)
        >>> x, y = ah.first_samples(torch.utils.data.DataLoader(data, batch_size=16), 50)
        >>> x.shape, y.shape
        (torch.Size([50, 4]), torch.Size([50]))
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"count: expected a number of samples, got {count!r}")
    if count <= 0:
        raise ValueError(f"count: expected a positive number of samples, got {count}")
    if isinstance(data, DataLoader):
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed for each pass
            batches: Iterable[Any] = list(_until(iter(data), count))
    elif isinstance(data, Dataset):
        batches = [default_collate(list(islice(_samples_of(data), count)) or [torch.empty(0)])]
    else:
        raise TypeError(
            f"data: expected a torch.utils.data.DataLoader or Dataset, got {type(data).__name__}; tensors go to a "
            "measurement as they are"
        )
    batch = _joined(list(batches), "data")
    found = _length(batch, "data")
    if found < count:
        raise ValueError(f"data: expected at least {count} samples, got {found}; write first_samples(data, {found})")
    return _split(_cut(batch, count))


def _samples_of(data: Dataset[Any]) -> Iterator[Any]:
    if hasattr(data, "__iter__"):
        yield from data
        return
    for index in range(len(data)):  # type: ignore[arg-type]
        yield data[index]


def _until(batches: Iterator[Any], count: int) -> Iterator[Any]:
    """The first batches that have so many samples together."""
    found = 0
    for batch in batches:
        yield batch
        found += _length(batch, "data")
        if found >= count:
            return


def _split(batch: Any) -> tuple[Any, Any]:
    """A batch as x and y."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        for name in _LABELS:
            if name in batch:
                return {key: value for key, value in batch.items() if key != name}, batch[name]
    return batch, None


def _length(batch: Any, name: str) -> int:
    """The number of samples in a batch.

    Raises:
        ValueError: If there is no tensor in it, or tensors differ in their number of rows.
    """
    found = list(_tensors(batch, name))
    if not found:
        raise ValueError(
            f"{name}: expected tensors in a batch, got {type(batch).__name__} without any; write a collate_fn that "
            "makes tensors (torch.from_numpy for arrays)"
        )
    (first, length), *others = [(of, len(tensor) if tensor.dim() else 0) for of, tensor in found]
    for other, rows in others:
        if rows != length:
            raise ValueError(
                f"{other}: expected {length} samples in the first dimension, as in {first}, got {rows}; leave out of "
                "the batch what all samples share"
            )
    return length


def _tensors(batch: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a batch with their names."""
    if isinstance(batch, Tensor):
        yield name, batch
    for of_part, part in named_parts(batch, name):
        yield from _tensors(part, of_part)


def _cut(batch: Any, count: int) -> Any:
    if isinstance(batch, Mapping):
        return {key: _cut(value, count) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_cut(part, count) for part in batch))
    if isinstance(batch, (tuple, list)):  # loaders give lists for tuples
        return tuple(_cut(part, count) for part in batch)
    return batch[:count] if isinstance(batch, Tensor) else batch


def _joined(batches: list[Any], name: str) -> Any:
    """Batches one after the other, in the structure of the first."""
    if not batches:
        raise ValueError(f"{name}: expected at least one batch, got none")
    first = batches[0]
    if isinstance(first, Tensor):
        shapes = {tuple(batch.shape[1:]) for batch in batches}
        if len(shapes) > 1:
            raise ValueError(
                f"{name}: expected samples of one shape, got {' and '.join(str(list(one)) for one in sorted(shapes))}; "
                "pad all batches to the same length"
            )
        return torch.cat(batches)
    if any(type(batch) is not type(first) for batch in batches):
        raise ValueError(
            f"{name}: expected batches of one structure, got {', '.join({type(b).__name__ for b in batches})}"
        )
    if isinstance(first, Mapping):
        if any(set(batch) != set(first) for batch in batches):
            raise ValueError(f"{name}: expected the names {list(first)} in each batch")
        return {key: _joined([batch[key] for batch in batches], f"{name}[{key!r}]") for key in first}
    if isinstance(first, (tuple, list)):
        if len({len(batch) for batch in batches}) > 1:
            raise ValueError(f"{name}: expected as many parts in each batch, got {[len(batch) for batch in batches]}")
        parts = [_joined(list(part), f"{name}[{i}]") for i, part in enumerate(zip(*batches, strict=True))]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if any(one is not first and one != first for one in batches[1:]):
        raise ValueError(
            f"{name}: expected tensors, or a constant that all batches share, got {first!r} and another one; leave it "
            "out of the batch"
        )
    return first
