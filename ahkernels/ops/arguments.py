"""Checks of what the ops are given, on devices without kernels and for shapes alone: a function for each op.

The CPU kernels make the same checks in the same words (csrc/cpu/tiles/arguments.cpp). Each function here takes what its
op takes, and raises RuntimeError, as the kernels do, with a sentence that names the argument.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ahkernels.ops.batch import KernelBatch
from ahkernels.ops.build import TILING

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def centered_inner_products(batch: KernelBatch, row_means: Sequence[Tensor], precision: str) -> None:
    """See the op."""
    op = "centered_inner_products"
    require_batch(op, batch)
    _require_precision(op, precision)
    shapes = [(batch.n, batch.o)] * batch.kernel_count
    _require_all_numbers(f"{op}: row_means", row_means, batch, "[n, o]", shapes)


def pair_inner_products(
    batch: KernelBatch,
    means: Sequence[Tensor],
    precision: str,
    first_end: int,
    second_begin: int,
    forward_means: Sequence[Tensor] = (),
    backward_means: Sequence[Tensor] = (),
) -> None:
    """See the op."""
    op = "pair_inner_products"
    require_batch(op, batch)
    _require_precision(op, precision)
    n, o, panel = batch.n, batch.o, TILING["panel"]
    if forward_means or backward_means:
        _require_all_numbers(f"{op}: means", means, batch, "[n, o, o]", [(n, o, o)] * batch.kernel_count)
        require_factor_means(op, batch, forward_means, backward_means)
    else:
        _require_all_numbers(f"{op}: means", means, batch, "[n, o, 1]", [(n, o, 1)] * batch.kernel_count)
    if not (0 <= second_begin < n and second_begin % panel == 0):
        raise RuntimeError(f"{op}: second_begin: expected 0 or a multiple of {panel} below n = {n}, got {second_begin}")
    if second_begin == 0 and first_end != n:
        raise RuntimeError(
            f"{op}: first_end: expected n = {n} for all pairs, which second_begin = 0 asks for, got {first_end}"
        )
    if second_begin and not 0 < first_end <= second_begin:
        raise RuntimeError(
            f"{op}: first_end: expected a number from 1 to second_begin = {second_begin}, got {first_end}"
        )


def per_output_inner_products(batch: KernelBatch, precision: str) -> None:
    """See the op."""
    require_batch("per_output_inner_products", batch)
    _require_precision("per_output_inner_products", precision)


def tangent_cross_product(rows: KernelBatch, columns: KernelBatch, v: Tensor) -> None:
    """See the op."""
    op = "tangent_cross_product"
    _require_kernel(op, rows)
    _require_kernel(op, columns, "column_")
    count = len(rows.forward)
    if len(columns.forward) != count:
        raise RuntimeError(f"{op}: column_layers: expected the {count} layers of the rows, got {len(columns.forward)}")
    _require_device(f"{op}: column_forward[0]", columns.forward[0], rows)
    for i, (row, column) in enumerate(zip(rows.kernels()[0], columns.kernels()[0], strict=True)):
        expected, got = ([one.forward.shape[2], one.backward.shape[3]] for one in (row, column))
        if got != expected:
            raise RuntimeError(f"{op}: column_forward[{i}]: expected d and m of the rows, {expected}, got {got}")
        if column.bias != row.bias:
            raise RuntimeError(
                f"{op}: column_bias[{i}]: expected the bias of the rows, {row.bias:g}, got {column.bias:g}"
            )
    _require_columns(op, columns, v)


def tangent_diagonal(batch: KernelBatch) -> None:
    """See the op."""
    _require_kernel("tangent_diagonal", batch)


def tangent_gram(batch: KernelBatch, precision: str) -> None:
    """See the op."""
    _require_kernel("tangent_gram", batch)
    _require_precision("tangent_gram", precision)


def tangent_gram_out(batch: KernelBatch, precision: str, out: Tensor) -> None:
    """See `ahkernels.ops.tangent_gram`."""
    op = "tangent_gram_out"
    _require_kernel(op, batch)
    _require_precision(op, precision)
    _require_device(f"{op}: out", out, batch)
    size = batch.n * batch.o
    if out.shape != (size, size) or not out.is_contiguous():
        turned = "" if out.is_contiguous() else "one with gaps or turned, "
        raise RuntimeError(
            f"{op}: out: expected a contiguous tensor of shape [n*o, n*o] = [{size}, {size}], got {turned}shape "
            f"{list(out.shape)}"
        )
    if out.dtype != torch.float64 and (out.dtype != torch.float32 or batch.dtype == torch.float64):
        raise RuntimeError(
            f"{op}: out: expected float64 numbers, or float32 for factors below float64, got {_name(out)}"
        )


def tangent_moments(batch: KernelBatch, v: Tensor, precision: str, per_output: bool = False) -> None:
    """See the op."""
    op = "tangent_moments"
    require_batch(op, batch)
    _require_precision(op, precision)
    _require_numbers(f"{op}: v", v, batch, "[n, o, 1]", (batch.n, batch.o, 1))
    if batch.o == 1:
        raise RuntimeError(
            f"{op}: backward: expected at least 2 outputs, got 1; for kernels over samples alone take "
            "centered_inner_products with the kernel of the labels, tangent_diagonal and tangent_row_sums"
        )


def tangent_product(batch: KernelBatch, v: Tensor, fp32: bool = False) -> None:
    """See the op."""
    _require_kernel("tangent_product", batch)
    _require_columns("tangent_product", batch, v)


def tangent_quadratic(batch: KernelBatch, v: Tensor) -> None:
    """See the op."""
    _require_kernel("tangent_quadratic", batch)
    _require_columns("tangent_quadratic", batch, v)


def tangent_row_sums(batch: KernelBatch) -> None:
    """See the op."""
    _require_kernel("tangent_row_sums", batch)


def require_factor_means(
    op: str, batch: KernelBatch, forward_means: Sequence[Tensor], backward_means: Sequence[Tensor]
) -> None:
    """Raises RuntimeError unless there are means [s, d] and [s, o, m] of the factors of each layer."""
    of_forward = [tuple(a.shape[1:]) for a in batch.forward]
    of_backward = [tuple(g.shape[1:]) for g in batch.backward]
    _require_all_numbers(f"{op}: forward_means", forward_means, batch, "[s, d]", of_forward)
    _require_all_numbers(f"{op}: backward_means", backward_means, batch, "[s, o, m]", of_backward)


def require_batch(op: str, batch: KernelBatch, prefix: str = "") -> None:
    """Raises RuntimeError unless lists and factors of a batch fit each other; the message names one of them."""
    lists = {name: getattr(batch, name) for name in KernelBatch._fields}
    count = len(batch.forward)
    if not count:
        raise RuntimeError(f"{op}: {prefix}forward: expected at least one factor, got none")
    for name in ("backward", "bias", "by_jacobian"):
        if len(lists[name]) != count:
            raise RuntimeError(
                f"{op}: {prefix}{name}: expected as many as {prefix}forward has factors ({count}), got "
                f"{len(lists[name])}"
            )
    for layers in batch.layers:
        if layers <= 0:
            raise RuntimeError(f"{op}: {prefix}layers: expected at least one for each kernel, got {layers}")
    if sum(batch.layers) != count:
        raise RuntimeError(
            f"{op}: {prefix}layers: expected a sum of {count}, the factors of {prefix}forward, got "
            f"{'more' if sum(batch.layers) > count else 'less'}: {list(batch.layers)}"
        )
    for i in range(count):
        _require_layer(op, batch, i, prefix)


def _require_layer(op: str, batch: KernelBatch, i: int, prefix: str) -> None:
    a, g, bias = batch.forward[i], batch.backward[i], batch.bias[i]
    forward, backward = f"{prefix}forward[{i}]", f"{prefix}backward[{i}]"
    if a.dim() != 3:
        raise RuntimeError(f"{op}: {forward}: expected shape [n, s, d], got {list(a.shape)}")
    if g.dim() != 4:
        raise RuntimeError(f"{op}: {backward}: expected shape [n, s, o, m], got {list(g.shape)}")
    if a.shape[:2] != g.shape[:2]:
        raise RuntimeError(
            f"{op}: {backward}: expected n and s of {forward}, {list(a.shape[:2])}, got {list(g.shape[:2])}"
        )
    if 0 in g.shape[:3]:
        raise RuntimeError(f"{op}: {backward}: expected n, s and o of at least 1, got shape {list(g.shape)}")
    if a.dtype not in _DTYPES:
        raise RuntimeError(
            f"{op}: {forward}: expected float32, float64, float16 or bfloat16 numbers, got {_name(a)}; convert both "
            "factors of the layer"
        )
    if g.dtype != a.dtype:
        raise RuntimeError(
            f"{op}: {backward}: expected the dtype of {forward}, {_name(a)}, got {_name(g)}; convert one of them"
        )
    if a.dtype != batch.forward[0].dtype:
        raise RuntimeError(
            f"{op}: {forward}: expected the dtype of {prefix}forward[0], {_name(batch.forward[0])}, got {_name(a)}; "
            "convert the factors of all layers to one"
        )
    if g.shape[::2] != batch.backward[0].shape[::2]:
        expected, got = list(batch.backward[0].shape[::2]), list(g.shape[::2])
        raise RuntimeError(f"{op}: {backward}: expected n and o of {prefix}backward[0], {expected}, got {got}")
    _require_device(f"{op}: {forward}", a, batch, prefix)
    _require_device(f"{op}: {backward}", g, batch, prefix)
    if not 0 <= bias < float("inf"):
        raise RuntimeError(
            f"{op}: {prefix}bias[{i}]: expected a finite number of at least 0, which is 1 for a layer with a bias, got "
            f"{bias:g}"
        )


def _require_kernel(op: str, batch: KernelBatch, prefix: str = "") -> None:
    require_batch(op, batch, prefix)
    if batch.kernel_count != 1:
        raise RuntimeError(f"{op}: {prefix}layers: expected one kernel, got {batch.kernel_count}")


def _require_device(what: str, tensor: Tensor, batch: KernelBatch, prefix: str = "") -> None:
    """The device and the layout, which for the CPU's kernels the dispatcher sees to."""
    device = batch.forward[0].device
    if tensor.device != device:
        raise RuntimeError(f"{what}: expected the device of {prefix}forward[0], {device}, got {tensor.device}; move it")
    if tensor.layout != torch.strided:
        raise RuntimeError(f"{what}: expected a dense tensor, got one of layout {tensor.layout}; take its to_dense()")


def _require_precision(op: str, precision: str) -> None:
    if precision not in ("highest", "high", "medium"):
        raise RuntimeError(f"{op}: precision: expected highest, high or medium, got {precision}")


def _require_columns(op: str, batch: KernelBatch, v: Tensor) -> None:
    _require_numbers(f"{op}: v", v, batch, "[n, o, columns]", (batch.n, batch.o, None))


def _require_numbers(what: str, tensor: Tensor, batch: KernelBatch, shape: str, sizes: Sequence[int | None]) -> None:
    """Sizes that are None may be any from 1 on."""
    fits = tensor.dtype == torch.float64 and tensor.dim() == len(sizes)
    of_each = zip(tensor.shape, sizes, strict=False)
    if not fits or any(got != size if size is not None else got < 1 for got, size in of_each):
        expected = ", ".join("1 or more" if size is None else str(size) for size in sizes)
        raise RuntimeError(
            f"{what}: expected float64 numbers of shape {shape} = [{expected}], got {_name(tensor)} of shape "
            f"{list(tensor.shape)}"
        )
    _require_device(what, tensor, batch)


def _require_all_numbers(
    what: str, tensors: Sequence[Tensor], batch: KernelBatch, shape: str, sizes: Sequence[Sequence[int]]
) -> None:
    if len(tensors) != len(sizes):
        raise RuntimeError(f"{what}: expected {len(sizes)} tensors, got {len(tensors)}")
    for i, (tensor, of_one) in enumerate(zip(tensors, sizes, strict=True)):
        _require_numbers(f"{what}[{i}]", tensor, batch, shape, of_one)


def _name(tensor: Tensor) -> str:
    """The dtype."""
    return str(tensor.dtype).removeprefix("torch.")
