"""The `outputs` argument: which rows a kernel has, with their cotangents and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Outputs: TypeAlias = Literal["all", "trace", "sum"] | int | Sequence[int]


def plain_outputs(outputs: Outputs) -> str | int | list[int]:
    """The argument `outputs` as a report has it, with a list for any sequence."""
    return outputs if isinstance(outputs, (str, int)) else list(outputs)


def require_labels(y: object) -> None:
    """Raises TypeError for anything but a dense tensor."""
    if not isinstance(y, Tensor):
        raise TypeError(f"y: expected a tensor of class indices [n] or targets [n, o], got {type(y).__name__}")
    if y.layout != torch.strided or y.is_nested:
        raise TypeError(f"y: expected a dense tensor, got layout {y.layout}; make it dense (y.to_dense())")


@dataclass(frozen=True)
class OutputSelection:
    """The outputs of a network that enter a kernel.

    "all", an index and a sequence of indices give kernels over pairs of a sample and an output. "trace" and "sum" give
    n x n kernels over samples: "trace" the sum of the kernels of the single outputs, "sum" the kernel of the sum of the
    outputs.

    Attributes:
        spec: The argument as the user gave it.
        total: Number o of the network's outputs.

    Raises:
        ValueError: If an index is out of range or comes twice, or for another word; the message names `outputs`.
        TypeError: For another type; the message names `outputs`.
    """

    spec: Outputs
    total: int

    def __post_init__(self) -> None:
        expected = 'outputs: expected "all", "trace", "sum", an output index or a sequence of them'
        if isinstance(self.spec, str):
            if self.spec not in ("all", "trace", "sum"):
                raise ValueError(f"{expected}, got {self.spec!r}")
            return
        indices = [self.spec] if isinstance(self.spec, int) else self.spec
        if not isinstance(indices, Sequence) or any(isinstance(i, bool) or not isinstance(i, int) for i in indices):
            raise TypeError(f"{expected}, got {self.spec!r}")
        if not indices:
            raise ValueError(f"{expected}, got an empty sequence")
        for index in indices:
            if not 0 <= index < self.total:
                raise ValueError(f"outputs: expected indices from 0 to {self.total - 1}, got {index}")
        if len(set(indices)) != len(indices):
            raise ValueError(f"outputs: expected each index once, got {list(indices)}")

    @property
    def indices(self) -> list[int]:
        """The outputs that are taken, in the order of the kernel's rows; all of them for "trace" and "sum"."""
        if isinstance(self.spec, str):
            return list(range(self.total))
        return [self.spec] if isinstance(self.spec, int) else list(self.spec)

    @property
    def plain_spec(self) -> str | int | list[int]:
        """The argument as a report has it, with a list for any sequence."""
        return plain_outputs(self.spec)

    @property
    def per_sample(self) -> bool:
        """Whether the kernel is n x n over samples; labels then enter as the kernel Y Y^T of the rows of Y."""
        return self.spec in ("trace", "sum")

    @property
    def rows(self) -> int:
        """Number r of cotangents, of which each takes a backward pass."""
        return 1 if self.spec == "sum" else len(self.indices)

    @property
    def entries(self) -> int:
        """Number of entries of the backward Gram that enter K for each pair of samples."""
        return self.rows if self.per_sample else self.rows**2

    def cotangents(self, like: Tensor) -> Tensor:
        """The gradients by the outputs that the backward passes start from, [r, o], with dtype and device of `like`."""
        if self.spec == "sum":
            return torch.ones(1, self.total, dtype=like.dtype, device=like.device)
        every = torch.eye(self.total, dtype=like.dtype, device=like.device)
        return every if isinstance(self.spec, str) else every[self.indices]

    def labels(self, y: Tensor, n: int) -> Tensor:
        """The labels of the kernel's rows, float64 on the CPU.

        Args:
            y: Class indices [n], which become one-hot rows, or a target matrix [n, o]. For a network with one output,
                classes 0 and 1 or targets [n] are taken as they are.
            n: Number of samples.

        Returns:
            [n, r] for the r outputs that are taken, or [n, o] for n x n kernels.

        Raises:
            ValueError: For a wrong shape, classes out of range, or nan and inf; the message names `y`.
            TypeError: For a wrong type.
        """
        require_labels(y)
        if y.dim() == 1 and self.total == 1:  # a binary head, or a regression
            if not y.dtype.is_floating_point and len(y) and not bool(((y == 0) | (y == 1)).all()):
                raise ValueError(
                    f"y: expected the classes 0 and 1 for a network with one output, got {int(y.max())}; write "
                    "y.double() for targets"
                )
            y = y.unsqueeze(1)
        if y.dim() == 1:
            if y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool:
                raise ValueError(
                    f"y: expected integer class indices in a tensor [n], got dtype {y.dtype}; write y.long()"
                )
            if y.shape[0] != n:
                raise ValueError(f"y: expected {n} class indices, one for each sample of x, got {y.shape[0]}")
            low, high = (int(value) for value in y.aminmax()) if len(y) else (0, 0)
            if low < 0 or high >= self.total:
                wrong = low if low < 0 else high
                raise ValueError(
                    f"y: expected class indices from 0 to {self.total - 1} (the network has {self.total} "
                    f"outputs), got {wrong}"
                )
            target = torch.nn.functional.one_hot(y.detach().cpu().long(), self.total).double()
        elif y.dim() == 2:
            if tuple(y.shape) != (n, self.total):
                remedy = "; write y.squeeze(1) for class indices" if y.shape[1] == 1 else ""
                raise ValueError(
                    f"y: expected a target matrix [n, o] = [{n}, {self.total}], got {list(y.shape)}{remedy}"
                )
            if y.dtype.is_complex:
                raise ValueError(f"y: expected real targets, got dtype {y.dtype}")
            target = y.detach().cpu().double()
            if not bool(torch.isfinite(target).all()):
                raise ValueError("y: expected finite targets, got nan or inf")
        else:
            raise ValueError(f"y: expected class indices [n] or a target matrix [n, o], got shape {list(y.shape)}")
        return target if self.per_sample else target[:, self.indices]
