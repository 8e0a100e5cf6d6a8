"""A kernel matrix as an operator: what tangent kernels and kernels between two sample sets have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahkernels.autocast import without_autocast
from ahkernels.factors import is_finite

Product: TypeAlias = Callable[[Tensor], Tensor]

# Largest kernel that to_dense() makes unasked: 46,341 rows in fp32.
MAX_DENSE_BYTES = 8 << 30


class KernelOperator(ABC):
    """A matrix [rows, columns] that is known by its products and formed only when `to_dense` is called.

    A subclass says what `shape`, `dtype` and `T` are and has two primitives, `_product` and `_dense`; all else follows
    from them.
    """

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(rows, columns)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype of `to_dense()`: float64 for float64 factors, otherwise float32."""

    @property
    @abstractmethod
    def T(self) -> KernelOperator:
        """The transpose."""

    @property
    def columns_here(self) -> int:
        """The number of columns of the samples in this process: the length of a vector v in K v."""
        return self.shape[1]

    @abstractmethod
    def _product(self, v: Tensor) -> Tensor:
        """K v for v [columns, k] as it was given: float64 [rows, k] on the kernel's device."""

    @abstractmethod
    def _dense(self, out: Tensor | None) -> Tensor:
        """K itself, [rows, columns], in `out` where that is given."""

    @abstractmethod
    def _tensors(self) -> Iterable[Tensor]:
        """What K is computed from."""

    def _largest_entries(self, dense: Tensor) -> Tensor:
        """Some entries of K, the largest one among them."""
        return dense

    def __matmul__(self, v: Tensor) -> Tensor:
        """K v in float64 on the kernel's device, from the factors alone.

        Args:
            v: [columns] or [columns, k].

        Raises:
            TypeError: If v is no tensor.
            ValueError: If v has another shape.
        """
        self._require_columns(v)
        found = self._product(v.unsqueeze(1) if v.dim() == 1 else v)
        return found.squeeze(1) if v.dim() == 1 else found

    def _require_columns(self, v: object) -> None:
        require_columns(v, self.columns_here)

    def to_dense(self, *, max_bytes: int = MAX_DENSE_BYTES, out: Tensor | None = None) -> Tensor:
        """K itself on the kernel's device, [rows, columns] in `dtype`.

        Args:
            max_bytes: The most that a new tensor may take; memory that is given has no limit.
            out: A contiguous tensor that K is written to and that is returned, such as that of an earlier call, or the
                part of one for all layers: memory that is touched for the first time can take longer than K itself. In
                float64 it gets K without the rounding of float32, whatever the factors are.

        Raises:
            TypeError: If `out` is no tensor, or `max_bytes` no number.
            ValueError: If `out` has another shape, dtype or device, is not contiguous, requires a gradient, or shares
                memory with the factors.
            MemoryError: If K takes more than `max_bytes`.
            OverflowError: If an entry is beyond the range of float32.
        """
        if not isinstance(max_bytes, (int, float)):
            raise TypeError(f"max_bytes: expected a number of bytes, got {type(max_bytes).__name__}")
        if out is not None:
            self._require_room(out)
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        if out is None and size > max_bytes:
            raise MemoryError(
                f"to_dense: K {list(self.shape)} takes {size / 2**30:.1f} GiB, more than max_bytes = {max_bytes:,} "
                f"({max_bytes / 2**30:.1f} GiB); products with K, its norms and alignments need no K in memory"
            )
        with without_autocast():
            dense = self._dense(out)
        if not is_finite(self._largest_entries(dense)):
            raise OverflowError(f"to_dense: an entry of K is beyond the range of {dense.dtype}; use a float64 model")
        return dense

    def _require_room(self, out: object) -> None:
        require_tensor("out", out, str(list(self.shape)))
        assert isinstance(out, Tensor)
        device = next(iter(self._tensors())).device
        if out.shape != self.shape or not out.is_contiguous():
            how = "" if out.is_contiguous() else " that is not contiguous"
            raise ValueError(f"out: expected a contiguous tensor {list(self.shape)}, got {list(out.shape)}{how}")
        if out.dtype not in (self.dtype, torch.float64):
            either = "torch.float64" if self.dtype == torch.float64 else f"{self.dtype} or torch.float64"
            raise ValueError(f"out: expected a tensor of {either}, got {out.dtype}")
        if out.device != device:
            raise ValueError(f"out: expected a tensor on {device}, got one on {out.device}")
        if out.requires_grad:
            raise ValueError("out: expected a tensor that requires no gradient, got one that does")
        if any(_overlap(out, one) for one in self._tensors()):
            raise ValueError("out: expected memory of its own, got a tensor that shares memory with the factors")

    def linear_operator(self) -> scipy.sparse.linalg.LinearOperator:
        """K as a float64 operator on numpy vectors, for scipy's solvers."""
        return scipy_operator(self.shape, self.__matmul__, self.T.__matmul__)


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether the memory from the first to the last number of two tensors of positive strides has a part in common."""

    def end(tensor: Tensor) -> int:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return tensor.data_ptr() + (last + 1) * tensor.element_size()

    both = first.numel() and second.numel() and first.device == second.device
    return bool(both and first.data_ptr() < end(second) and second.data_ptr() < end(first))


def scipy_operator(
    shape: torch.Size, product: Product, transposed_product: Product
) -> scipy.sparse.linalg.LinearOperator:
    """An operator of scipy from products of tensors [columns, k] and [rows, k]."""

    def of_arrays(product: Product) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        def on_arrays(v: NDArray[np.float64]) -> NDArray[np.float64]:
            columns = torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64)).reshape(len(v), -1)
            result: NDArray[np.float64] = product(columns).cpu().numpy()
            return result.reshape(-1, *v.shape[1:])

        return on_arrays

    forward, backward = of_arrays(product), of_arrays(transposed_product)
    return scipy.sparse.linalg.LinearOperator(
        tuple(shape), matvec=forward, rmatvec=backward, matmat=forward, rmatmat=backward, dtype=np.float64
    )


def require_tensor(argument: str, value: object, shape: str) -> None:
    """Raises TypeError naming the argument and the shape that is expected for anything but a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: expected a tensor {shape}, got {type(value).__name__}")


def require_columns(v: object, rows: int, argument: str = "v") -> None:
    """Raises TypeError or ValueError naming the argument for anything but [rows] or [rows, columns]."""
    shape = f"[{rows}] or [{rows}, columns]"
    require_tensor(argument, v, shape)
    assert isinstance(v, Tensor)
    if v.dim() not in (1, 2) or v.shape[0] != rows or 0 in v.shape[1:]:
        raise ValueError(f"{argument}: expected shape {shape}, got {list(v.shape)}")
