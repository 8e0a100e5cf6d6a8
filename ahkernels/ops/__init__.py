"""The ops ``torch.ops.ahkernels.*`` as typed functions, with their fake and plain-torch implementations.

All take the factors of a tangent kernel,

    forward   [n, s, d]     input a_s(x) of the layer at each of its s uses
    backward  [n, s, o, m]  gradient g_s^i(x) of output i with respect to the layer's pre-activations
    bias      1.0 for a layer with a bias, else 0.0

of K[(x, i), (x', j)] = sum_{s, s'} (<a_s(x), a_s'(x')> + bias) <g_s^i(x), g_s'^j(x')>, with any strides. A kernel may
be a sum of such terms, one for each layer of a group, and a term with several uses may go by pairs of them, as written
here, or by its Jacobian J^i(x) = sum_s g_s^i(x) a_s(x)^T, a slice of the parameters at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ahkernels.ops import cuda, plain
from ahkernels.ops.build import build_info, load_cuda

__all__ = [
    "build_info",
    "centered_moments",
    "per_output_moments",
    "tangent_cross_product",
    "tangent_diagonal",
    "tangent_gram",
    "tangent_product",
    "tangent_quadratic",
    "tangent_row_sums",
    "tangent_statistics",
]


def centered_moments(
    forward: Sequence[Tensor],
    backward: Sequence[Tensor],
    bias: Sequence[float],
    row_means: Sequence[Tensor],
    precision: str,
    by_jacobian: Sequence[bool] = (),
    terms: Sequence[int] = (),
) -> Tensor:
    """Inner products <C K_a C, C K_b C>_F of q centered kernels, in one pass over tiles with no K in memory.

    Args:
        forward: Factors [n, s, d] of all terms of the first kernel, the second and so on; n and dtype are the same.
        backward: Factors [n, s, o, m]; o is the same.
        bias: A number for each.
        row_means: Mean of each row of each K, float64 [n, o]; zeros leave the kernel as it is.
        precision: "highest", "high" or "medium".
        by_jacobian: Whether each term goes by its Jacobian; empty for none of them.
        terms: Number of terms of each of the q kernels; empty for one each.

    Returns:
        float64 [q, q] on the factors' device.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.centered_moments(
        list(forward), list(backward), list(bias), list(row_means), precision, list(by_jacobian), list(terms)
    )
    return result


def per_output_moments(
    forward: Sequence[Tensor],
    backward: Sequence[Tensor],
    bias: Sequence[float],
    precision: str,
    by_jacobian: Sequence[bool] = (),
    terms: Sequence[int] = (),
) -> Tensor:
    """Inner products of q kernels centered per output and of the same centered as a whole, in one pass over tiles.

    Means are taken out of the factors, so that blocks K_ij of two outputs may be close to constant. Arguments are those
    of `centered_moments`.

    Returns:
        float64 [2, q, q]: [0] <C K_a C, C K_b C>_F with C = I - 11^T/(on), [1] with C = (I_n - 11^T/n) (x) I_o.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.per_output_moments(
        list(forward), list(backward), list(bias), precision, list(by_jacobian), list(terms)
    )
    return result


def tangent_gram(
    forward: Sequence[Tensor],
    backward: Sequence[Tensor],
    bias: Sequence[float],
    precision: str,
    by_jacobian: Sequence[bool] = (),
) -> Tensor:
    """One kernel itself, K [n*o, n*o] in float64 for float64 factors and else float32, exactly symmetric.

    Args:
        forward: Factors [n, s, d] of its terms.
        backward: Factors [n, s, o, m].
        bias: A number for each.
        precision: "highest", "high" or "medium".
        by_jacobian: Whether each term goes by its Jacobian; empty for none of them.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.tangent_gram(
        list(forward), list(backward), list(bias), precision, list(by_jacobian)
    )
    return result


def tangent_diagonal(forward: Tensor, backward: Tensor, bias: float, by_jacobian: bool = False) -> Tensor:
    """The diagonal of K, float64 [n, o].

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.tangent_diagonal(forward, backward, bias, by_jacobian)
    return result


def tangent_product(forward: Tensor, backward: Tensor, bias: float, v: Tensor, fp32: bool = False) -> Tensor:
    """K V without K: v and the result are [n, o, columns] float64.

    In float64, exact up to its rounding; `fp32` allows fp32's instead for factors below float64, which takes less time.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.tangent_product(forward, backward, bias, v, fp32)
    return result


def tangent_cross_product(
    forward: Tensor, backward: Tensor, other_forward: Tensor, other_backward: Tensor, bias: float, v: Tensor
) -> Tensor:
    """K(x, x') V of a layer between two sample sets, in float64 and without K.

    Args:
        forward: Factor [n, s, d] of the rows x.
        backward: Factor [n, s, o, m] of the rows.
        other_forward: Factor [n', s', d] of the columns x'.
        other_backward: Factor [n', s', o', m] of the columns.
        bias: 1.0 for a layer with a bias, else 0.0.
        v: [n', o', columns] float64.

    Returns:
        [n, o, columns] float64.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.tangent_cross_product(
        forward, backward, other_forward, other_backward, bias, v
    )
    return result


def tangent_quadratic(forward: Tensor, backward: Tensor, bias: float, v: Tensor) -> Tensor:
    """v^T K v of each column in float64, at less cost than K v: v is [n, o, columns], the result [columns].

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.tangent_quadratic(forward, backward, bias, v)
    return result


def tangent_row_sums(forward: Tensor, backward: Tensor, bias: float) -> Tensor:
    """K 1, float64 [n, o], with the rounding that centering allows: fp32's for o > 1 and factors below float64.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.tangent_row_sums(forward, backward, bias)
    return result


def tangent_statistics(
    forward: Sequence[Tensor],
    backward: Sequence[Tensor],
    bias: Sequence[float],
    v: Tensor,
    precision: str,
    by_jacobian: Sequence[bool] = (),
    terms: Sequence[int] = (),
    per_output: bool = False,
) -> Tensor:
    """The numbers of an alignment: <v, K v>, ||C K C||_F^2, trace and sum of q kernels, float64 [q, 4].

    One op, since all of them come from tiles that are made once, and small kernels are taken side by side. Arguments as
    `centered_moments`, with centered targets v (of zero sum), float64 [n, o, 1].

    With `per_output`, for kernels over several outputs, [q, 8]: the same four, and then <v_o, K v_o> for targets v_o
    centered over the samples of each output, ||C_o K C_o||_F^2 with C_o = (I_n - 11^T/n) (x) I_o, the trace, and the
    sum of the blocks of K on the diagonal.

    Raises:
        RuntimeError: where shapes or dtypes do not fit; the message names the argument.
    """
    result: Tensor = torch.ops.ahkernels.tangent_statistics(
        list(forward), list(backward), list(bias), v, precision, list(by_jacobian), list(terms), per_output
    )
    return result


@torch.library.register_fake("ahkernels::centered_moments")
def _(
    forward: list[Tensor],
    backward: list[Tensor],
    bias: list[float],
    row_means: list[Tensor],
    precision: str,
    by_jacobian: Sequence[bool] = (),
    terms: Sequence[int] = (),
) -> Tensor:
    return row_means[0].new_empty(len(row_means), len(row_means))


@torch.library.register_fake("ahkernels::per_output_moments")
def _(
    forward: list[Tensor],
    backward: list[Tensor],
    bias: list[float],
    precision: str,
    by_jacobian: Sequence[bool] = (),
    terms: Sequence[int] = (),
) -> Tensor:
    kernels = len(terms) or len(forward)
    return forward[0].new_empty(2, kernels, kernels, dtype=torch.float64)


@torch.library.register_fake("ahkernels::tangent_gram")
def _(
    forward: list[Tensor],
    backward: list[Tensor],
    bias: list[float],
    precision: str,
    by_jacobian: Sequence[bool] = (),
) -> Tensor:
    size = backward[0].shape[0] * backward[0].shape[2]
    return forward[0].new_empty(size, size, dtype=plain.tile_dtype(forward[0]))


@torch.library.register_fake("ahkernels::tangent_quadratic")
def _(forward: Tensor, backward: Tensor, bias: float, v: Tensor) -> Tensor:
    return v.new_empty(v.shape[2])


@torch.library.register_fake("ahkernels::tangent_diagonal")
def _(forward: Tensor, backward: Tensor, bias: float, by_jacobian: bool = False) -> Tensor:
    return forward.new_empty(backward.shape[0], backward.shape[2], dtype=torch.float64)


@torch.library.register_fake("ahkernels::tangent_row_sums")
def _(forward: Tensor, backward: Tensor, bias: float) -> Tensor:
    return forward.new_empty(backward.shape[0], backward.shape[2], dtype=torch.float64)


@torch.library.register_fake("ahkernels::tangent_product")
def _(forward: Tensor, backward: Tensor, bias: float, v: Tensor, fp32: bool = False) -> Tensor:
    return torch.empty_like(v)


@torch.library.register_fake("ahkernels::tangent_cross_product")
def _(
    forward: Tensor, backward: Tensor, other_forward: Tensor, other_backward: Tensor, bias: float, v: Tensor
) -> Tensor:
    return v.new_empty(backward.shape[0], backward.shape[2], v.shape[2])


@torch.library.register_fake("ahkernels::tangent_statistics")
def _(
    forward: list[Tensor],
    backward: list[Tensor],
    bias: list[float],
    v: Tensor,
    precision: str,
    by_jacobian: Sequence[bool] = (),
    terms: Sequence[int] = (),
    per_output: bool = False,
) -> Tensor:
    return v.new_empty(len(terms) or len(forward), 8 if per_output else 4)


# Any device without kernels of its own gets the plain-torch implementation.
for _name in __all__:
    if _name != "build_info":
        torch.library.impl(f"ahkernels::{_name}", "CompositeExplicitAutograd", getattr(plain, _name))

if load_cuda():
    for _name in ("centered_moments", "tangent_gram"):  # the others are products that torch's libraries are best at
        torch.library.impl(f"ahkernels::{_name}", "CUDA", getattr(cuda, _name))
