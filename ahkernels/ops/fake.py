"""Fake implementations of the ops, which give shapes and dtypes alone, so that they work under `torch.compile`."""

from __future__ import annotations

import torch
from torch import Tensor

from ahkernels.ops.batch import KernelBatch
from ahkernels.ops.plain import tile_dtype


def centered_inner_products(batch: KernelBatch, row_means: list[Tensor], precision: str) -> Tensor:
    """[q, q]."""
    return row_means[0].new_empty(batch.kernel_count, batch.kernel_count)


def pair_inner_products(
    batch: KernelBatch,
    means: list[Tensor],
    precision: str,
    first_end: int,
    second_begin: int,
    forward_means: list[Tensor],
    backward_means: list[Tensor],
) -> Tensor:
    """[q, q]."""
    return means[0].new_empty(batch.kernel_count, batch.kernel_count)


def per_output_inner_products(batch: KernelBatch, precision: str) -> Tensor:
    """[2, q, q]."""
    return batch.forward[0].new_empty(2, batch.kernel_count, batch.kernel_count, dtype=torch.float64)


def tangent_cross_product(rows: KernelBatch, columns: KernelBatch, v: Tensor) -> Tensor:
    """[n, o, columns] of the rows."""
    return v.new_empty(rows.n, rows.o, v.shape[2])


def tangent_diagonal(batch: KernelBatch) -> Tensor:
    """[n, o]."""
    return batch.forward[0].new_empty(batch.n, batch.o, dtype=torch.float64)


def tangent_gram(batch: KernelBatch, precision: str) -> Tensor:
    """[n*o, n*o]."""
    size = batch.n * batch.o
    return batch.forward[0].new_empty(size, size, dtype=tile_dtype(batch.forward[0]))


def tangent_gram_out(batch: KernelBatch, precision: str, out: Tensor) -> None:
    """Nothing is made."""


def tangent_moments(batch: KernelBatch, v: Tensor, precision: str, per_output: bool = False) -> Tensor:
    """[q, 4] or [q, 8]."""
    return v.new_empty(batch.kernel_count, 8 if per_output else 4)


def tangent_product(batch: KernelBatch, v: Tensor, fp32: bool = False) -> Tensor:
    """[n, o, columns]."""
    return v.new_empty(v.shape)


def tangent_quadratic(batch: KernelBatch, v: Tensor) -> Tensor:
    """[columns]."""
    return v.new_empty(v.shape[2])


def tangent_row_sums(batch: KernelBatch) -> Tensor:
    """[n, o]."""
    return batch.forward[0].new_empty(batch.n, batch.o, dtype=torch.float64)
