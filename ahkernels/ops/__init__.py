"""The ops ``torch.ops.ahkernels.*`` as typed functions, and their registration with the dispatcher.

All take a `KernelBatch`, the layer factors of one kernel or of several,

    forward   [n, s, d]     input a_s(x) of the layer at each of its s positions
    backward  [n, s, o, m]  gradient g_s^i(x) of output i with respect to the layer's pre-activations
    bias      1.0 for a layer with a bias, else 0.0

with any strides, also where numbers share memory. A kernel is the sum of K[(x, i), (x', j)] =
sum_{s, s'} (<a_s(x), a_s'(x')> + bias) <g_s^i(x), g_s'^j(x')> over its layers. A layer with several positions goes by
pairs of them, as written here, or by its Jacobian J^i(x) = sum_s g_s^i(x) a_s(x)^T, one slice of the parameters at a
time.

The ops have no derivatives, which torch warns of where a gradient is asked for.

The ops themselves take the fields of a batch as five arguments, as in
``torch.ops.ahkernels.tangent_gram(*batch, precision)``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ahkernels.autocast import without_autocast
from ahkernels.ops import arguments, cuda, fake, plain
from ahkernels.ops.batch import KernelBatch, flat
from ahkernels.ops.build import TILING, build_info, load_cuda
from ahkernels.ops.deviations import deviations
from ahkernels.ops.moments import Moments, join, separate

__all__ = [
    "TILING",
    "KernelBatch",
    "Moments",
    "build_info",
    "centered_inner_products",
    "deviations",
    "pair_inner_products",
    "per_output_inner_products",
    "tangent_cross_product",
    "tangent_diagonal",
    "tangent_gram",
    "tangent_moments",
    "tangent_product",
    "tangent_quadratic",
    "tangent_row_sums",
]


def centered_inner_products(batch: KernelBatch, row_means: Sequence[Tensor], precision: str) -> Tensor:
    """Inner products <C K_a C, C K_b C>_F of q centered kernels, in one pass over tiles with no K in memory.

    Args:
        batch: The kernels.
        row_means: Mean of each row of each kernel, float64 [n, o]; zeros leave the kernel as it is.
        precision: "highest", "high" or "medium".

    Returns:
        float64 [q, q] on the factors' device.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.centered_inner_products(*batch, list(row_means), precision)
    return result


def pair_inner_products(
    batch: KernelBatch,
    means: Sequence[Tensor],
    precision: str,
    first_end: int,
    second_begin: int,
    forward_means: Sequence[Tensor] = (),
    backward_means: Sequence[Tensor] = (),
) -> Tensor:
    """The part of the inner products of q centered kernels that some pairs of samples have, without K.

    With means c of a kernel, an entry is K[(x, i), (x', j)] - c[x, i, j] - c[x', j, i]. For the centered kernel c is
    its row means less half of the mean of all entries. Pairs are those of x < first_end with x' >= second_begin, each
    twice, or with second_begin = 0 all pairs.

    Args:
        batch: The kernels. Samples from first_end to second_begin take no part.
        means: c of each kernel, float64 [n, o, 1]; or with means of the factors [n, o, o].
        precision: "highest", "high" or "medium".
        first_end: End of the samples of the first group; n for all pairs.
        second_begin: Begin of those of the second one; 0 for all pairs, otherwise a multiple of `TILING["panel"]`.
        forward_means: Empty for K itself. Otherwise for each layer the mean of its forward factor, float64 [s, d] with
            the digits of the dtype of tiles: then K and c are those of `deviations` from means, for centering per
            output.
        backward_means: Likewise, [s, o, m].

    Returns:
        float64 [q, q].

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    factor_means = list(forward_means), list(backward_means)
    result: Tensor = torch.ops.ahkernels.pair_inner_products(
        *batch, list(means), precision, first_end, second_begin, *factor_means
    )
    return result


def per_output_inner_products(batch: KernelBatch, precision: str) -> Tensor:
    """Inner products of q kernels centered per output, and of the same centered as a whole, in one pass over tiles.

    Means leave the factors before these are multiplied, so that the blocks K_ij of two outputs may be near constant.

    Args:
        batch: The kernels.
        precision: "highest", "high" or "medium".

    Returns:
        float64 [2, q, q]: [0] <C K_a C, C K_b C>_F with C = I - 11^T/(on), [1] with C = (I_n - 11^T/n) (x) I_o.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.per_output_inner_products(*batch, precision)
    return result


def tangent_cross_product(rows: KernelBatch, columns: KernelBatch, v: Tensor) -> Tensor:
    """K(x, x') V of one kernel between two sample sets, in float64 and without K.

    Args:
        rows: The kernel's factors for the samples x, with n and o.
        columns: Those for the samples x', with n' and o' and as many layers; the numbers s of positions may differ.
        v: [n', o', columns] float64.

    Returns:
        [n, o, columns] float64.

    Raises:
        RuntimeError: where shapes, dtypes or biases do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.tangent_cross_product(*rows, *columns, v)
    return result


def tangent_diagonal(batch: KernelBatch) -> Tensor:
    """The diagonal of one kernel, float64 [n, o].

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.tangent_diagonal(*batch)
    return result


def tangent_gram(batch: KernelBatch, precision: str, out: Tensor | None = None) -> Tensor:
    """One kernel itself, K [n*o, n*o] in float64 for float64 factors and else float32, exactly symmetric.

    Args:
        batch: The kernel.
        precision: "highest", "high" or "medium".
        out: Contiguous memory for K, which no factor may share. In float64 it gets K with the rounding of float64,
            whatever the factors and the precision are.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    if out is not None:
        torch.ops.ahkernels.tangent_gram_out(*batch, precision, out)
        return out
    result: Tensor = torch.ops.ahkernels.tangent_gram(*batch, precision)
    return result


def tangent_moments(batch: KernelBatch, v: Tensor, precision: str, per_output: bool = False) -> tuple[Moments, ...]:
    """The moments of q kernels over several outputs, with global centering and on demand per output.

    All of them come from tiles that are made once, and small kernels are taken side by side.

    Args:
        batch: The kernels.
        v: Labels, float64 [n, o, 1]. They are centered as the kernels are: the inner product is <C v, K C v>.
        precision: "highest", "high" or "medium".
        per_output: Whether to center per output, too.

    Returns:
        The moments with C = I - 11^T/(on); with `per_output`, then those with C = (I_n - 11^T/n) (x) I_o.

    Raises:
        RuntimeError: where shapes or dtypes do not fit, or for kernels of one output; the message names the argument.
    """
    return separate(torch.ops.ahkernels.tangent_moments(*batch, v, precision, per_output))


def tangent_product(batch: KernelBatch, v: Tensor, fp32: bool = False) -> Tensor:
    """K V of one kernel without K: v and the result are [n, o, columns] float64.

    Args:
        batch: The kernel.
        v: [n, o, columns] float64.
        fp32: Whether the rounding of fp32 is allowed for factors below float64, which takes less time; else the result
            is exact up to the rounding of float64.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.tangent_product(*batch, v, fp32)
    return result


def tangent_quadratic(batch: KernelBatch, v: Tensor) -> Tensor:
    """v^T K v of one kernel for each column of v [n, o, columns], float64 [columns], at less cost than K v.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.tangent_quadratic(*batch, v)
    return result


def tangent_row_sums(batch: KernelBatch) -> Tensor:
    """K 1 of one kernel, float64 [n, o].

    The rounding is as centering allows: that of fp32 for several outputs and factors below float64, else float64's.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.tangent_row_sums(*batch)
    return result


def joined(module: ModuleType) -> Callable[..., Tensor]:
    """The moments of a module as the op returns them."""

    @functools.wraps(module.tangent_moments)
    def moments(*arguments: Any) -> Tensor:
        return join(module.tangent_moments(*arguments))

    return moments


def _register() -> None:
    for name in (*__all__, "tangent_gram_out"):
        if not hasattr(torch.ops.ahkernels, name):
            continue  # no op
        batches = 2 if name == "tangent_cross_product" else 1
        check = getattr(arguments, name)
        torch.library.register_fake(f"ahkernels::{name}", flat(getattr(fake, name), check, batches))
        # Any device without kernels of its own takes the plain-torch implementation.
        implementation: Callable[..., Any] = joined(plain) if name == "tangent_moments" else getattr(plain, name)
        torch.library.impl(
            f"ahkernels::{name}", "CompositeExplicitAutograd", flat(without_autocast()(implementation), check, batches)
        )
    if load_cuda():
        # torch's libraries are best at the other ops
        for name in ("centered_inner_products", "per_output_inner_products", "tangent_gram"):
            implementation = without_autocast()(getattr(cuda, name))
            torch.library.impl(f"ahkernels::{name}", "CUDA", flat(implementation, getattr(arguments, name)))
        implementation = without_autocast()(joined(cuda))
        torch.library.impl("ahkernels::tangent_moments", "CUDA", flat(implementation, arguments.tangent_moments))


_register()
