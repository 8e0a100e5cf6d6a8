"""The outputs of a module joined to one tensor, at which the gradients of all of them arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


def through_one_tensor(outputs: Any, sample_dimensions: Sequence[int]) -> tuple[Tensor, Any]:
    """Joins outputs, and takes what is joined apart again.

    Args:
        outputs: A tensor, or tensors in tuples.
        sample_dimensions: The dimension of the n samples in each of the tensors.

    Returns:
        The tensor [n, numbers], and outputs like those that were given but computed from it. Their memory is laid out
        in the same way, since a model may take views of it.
    """
    parts, structure = tree_flatten(outputs)
    moved = [part.movedim(dim, 0) for part, dim in zip(parts, sample_dimensions, strict=True)]
    joined = torch.cat([part.flatten(1) for part in moved], 1)
    apart = torch.split(joined, [part[0].numel() for part in moved], 1)
    again = [
        torch.empty_like(part).copy_(piece.reshape(like.shape).movedim(0, dim))
        for part, piece, like, dim in zip(parts, apart, moved, sample_dimensions, strict=True)
    ]
    return joined, tree_unflatten(again, structure)
