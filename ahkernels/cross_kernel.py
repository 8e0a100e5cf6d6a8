"""The tangent kernel between two sample sets: what the predictions of a kernel machine are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from ahkernels import ops
from ahkernels.factors import LayerFactors
from ahkernels.kernel import TangentKernel, require_kernel
from ahkernels.kernel_operator import KernelOperator
from ahkernels.ops import plain


class CrossKernel(KernelOperator):
    """The kernel K(x, x') [n*o, n'*o] of a layer or group between the samples of two of its tangent kernels.

    Both must have been captured from the same parameters. A layer with several positions may be captured in another
    form for another number of samples: capture both with `keep_factors=True`, or all samples together and then take
    `subset`.

    Args:
        rows: The kernel over the samples x.
        columns: The kernel over the samples x'.

    Raises:
        TypeError: For anything but kernels.
        ValueError: If they differ in their layers, outputs, form, dtype or device.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> test, train = (ah.tangent_kernels(model, torch.randn(n, 4))["0"] for n in (5, 20))
        >>> cross = ah.CrossKernel(test, train)
        >>> cross.shape, (cross @ torch.randn(60)).shape, cross.T.shape
        (torch.Size([15, 60]), torch.Size([15]), torch.Size([60, 15]))
    """

    def __init__(self, rows: TangentKernel, columns: TangentKernel) -> None:
        require_kernel("rows", rows)
        require_kernel("columns", columns)
        if rows.outputs != columns.outputs:
            raise ValueError(f"columns: expected outputs = {rows.outputs.spec!r}, got {columns.outputs.spec!r}")
        if len(rows.factors) != len(columns.factors):
            raise ValueError(f"columns: expected {len(rows.factors)} layers, as in rows, got {len(columns.factors)}")
        for row, column in zip(rows.factors, columns.factors, strict=True):
            for what, wanted, got in (
                ("layer", row.layer, column.layer),
                ("bias", row.bias, column.bias),
                ("dtype", row.forward.dtype, column.forward.dtype),
                ("device", row.forward.device, column.forward.device),
                ("numbers d and m of inputs and pre-activations", _sizes(row), _sizes(column)),
            ):
                if wanted != got:
                    raise ValueError(
                        f"columns: expected the {what} of rows, {wanted}, got {got}; capture both kernels alike (with "
                        "keep_factors=True), or all samples together and take subset(...)"
                    )
            if row.root is not column.root:
                raise ValueError(
                    f"columns: expected factors or Jacobians of layer {row.layer!r} in rows and columns, got square "
                    "roots of different kernels; capture all samples together and take subset(...), or, if it is no "
                    "table that is also the weight of a linear layer, both with keep_factors=True"
                )
        self.rows, self.columns = rows, columns

    @property
    def shape(self) -> torch.Size:
        """(n*o, n'*o)."""
        return torch.Size((self.rows.shape[0], self.columns.shape[0]))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of `to_dense()`: float64 for float64 factors, otherwise float32."""
        return self.rows.dtype

    @property
    def T(self) -> CrossKernel:
        """K(x', x)."""
        return CrossKernel(self.columns, self.rows)

    def __repr__(self) -> str:
        """Name, shape and outputs in one line."""
        name = f"{self.rows.name!r}, " if self.rows.name else ""
        return f"CrossKernel({name}shape={tuple(self.shape)}, outputs={self.rows.outputs.spec!r})"

    def _product(self, v: Tensor) -> Tensor:
        v = v.detach().to(self.columns.device, torch.float64)
        if self.columns.samples.sharded:
            return self.rows.jvp(self.columns.vjp(v))
        v = v.reshape(self.columns.n, self.columns.o, -1).contiguous()
        return ops.tangent_cross_product(self.rows.batch, self.columns.batch, v).flatten(0, 1)

    @property
    def columns_here(self) -> int:
        """The number of columns of the samples in this process."""
        return self.columns.rows_here

    def _require_columns(self, v: object) -> None:
        self.columns._require_columns(v)

    def _tensors(self) -> Iterable[Tensor]:
        return itertools.chain(self.rows._tensors(), self.columns._tensors())

    def _dense(self, out: Tensor | None) -> Tensor:
        if self.rows.samples.sharded or self.columns.samples.sharded:
            raise ValueError(
                "to_dense: expected kernels whose samples are all in this process, got one over several processes"
            )
        n, o = self.rows.n, self.rows.o
        scaled = [
            plain.scaled_layers(kernel.batch.kernels()[0], self.rows.precision) for kernel in (self.rows, self.columns)
        ]
        if out is None:
            out = torch.empty(self.shape, dtype=self.dtype, device=self.rows.device)
        dense = out.view(n, o, self.columns.n, self.columns.o)
        step = max(1, plain.chunk_elements(out) // (o * self.shape[1]))
        for begin in range(0, n, step):
            now = slice(begin, begin + step)
            total = torch.zeros(dense[now].shape, dtype=torch.float64, device=out.device)
            for row, column in zip(*scaled, strict=True):
                # Powers of two, each the square of what its own factors were multiplied by.
                total += row.samples(now).against(column).double() / (row.scale.sqrt() * column.scale.sqrt())
            dense[now] = total.to(out.dtype)
        return out


def _sizes(factors: LayerFactors) -> tuple[int, int]:
    return factors.forward.shape[2], factors.backward.shape[3]
