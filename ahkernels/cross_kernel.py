"""The tangent kernel between two sample sets: what the predictions of a kernel machine are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from ahkernels import ops
from ahkernels.factors import LayerFactors
from ahkernels.kernel import TangentKernel, require_kernel
from ahkernels.kernel_operator import KernelOperator
from ahkernels.ops import plain


class CrossKernel(KernelOperator):
    """K(x, x') [n*o, n'*o] of a layer or a group between the samples of two kernels of it, from their factors.

    Both kernels must have been captured from the same parameters. Layers with positions may be kept in another form for
    another number of samples: capture both with `keep_factors=True`, or all samples together and then take `subset`.

    Args:
        rows: Kernel over the samples x.
        columns: Kernel over the samples x'.

    Raises:
        TypeError: for anything but kernels.
        ValueError: where they are not of the same layers and outputs, or in another form, dtype or on another device.
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
        """Shape, outputs and layer in one line."""
        name = f"{self.rows.name!r}, " if self.rows.name else ""
        return f"CrossKernel({name}shape={tuple(self.shape)}, outputs={self.rows.outputs.spec!r})"

    def _product(self, v: Tensor) -> Tensor:
        v = v.detach().to(self.columns.device, torch.float64)
        v = v.reshape(self.columns.n, self.columns.o, -1).contiguous()
        out = v.new_zeros(self.rows.n, self.rows.o, v.shape[2])
        for row, column in zip(self.rows.factors, self.columns.factors, strict=True):
            out += ops.tangent_cross_product(
                row.forward.detach(),
                row.backward.detach(),
                column.forward.detach(),
                column.backward.detach(),
                float(row.bias),
                v,
            )
        return out.flatten(0, 1)

    def _dense(self) -> Tensor:
        n, o = self.rows.n, self.rows.o
        scaled = [
            [plain.ScaledTerm.of(*_plain(term), self.rows.precision) for term in kernel.factors]
            for kernel in (self.rows, self.columns)
        ]
        out = torch.empty(n, o, self.columns.n, self.columns.o, dtype=self.dtype, device=self.rows.device)
        step = max(1, plain.chunk_elements(out) // (o * self.shape[1]))
        for begin in range(0, n, step):
            now = slice(begin, begin + step)
            total = torch.zeros(out[now].shape, dtype=torch.float64, device=out.device)
            for row, column in zip(*scaled, strict=True):
                # Powers of two, each the square of what its own factors were multiplied by.
                total += row.samples(now).against(column).double() / (row.scale.sqrt() * column.scale.sqrt())
            out[now] = total.to(self.dtype)
        return out.view(self.shape)


def _sizes(term: LayerFactors) -> tuple[int, int]:
    return term.forward.shape[2], term.backward.shape[3]


def _plain(term: LayerFactors) -> tuple[Tensor, Tensor, float, bool]:
    return term.forward.detach(), term.backward.detach(), float(term.bias), term.by_jacobian
