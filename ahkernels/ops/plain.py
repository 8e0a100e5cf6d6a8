"""The ops in plain torch, chunked and centered as the kernels are: for devices without kernels.

Slower, with the same answer. Memory beyond the factors stays within a few times ``chunk_elements`` numbers at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ahkernels.ops.scaling import power_of_two


def chunk_elements(factor: Tensor) -> int:
    """Numbers at a time: for the caches of a processor, or enough to keep another device busy."""
    return 1 << 23 if factor.device.type == "cpu" else 1 << 26


def tile_dtype(factor: Tensor) -> torch.dtype:
    """The dtype of tiles and of a materialised K: float64 for float64 factors, else float32."""
    return torch.float64 if factor.dtype == torch.float64 else torch.float32


def _scaled(factor: Tensor, precision: str, bias: float = 0.0) -> tuple[Tensor, Tensor]:
    """The factor times a power of two, and that power of two: see `power_of_two`."""
    scale = power_of_two(factor, bias)
    numbers = factor.to(tile_dtype(factor)) * scale.to(tile_dtype(factor))
    if precision == "medium" and numbers.dtype == torch.float32:
        numbers = numbers.to(torch.bfloat16).to(torch.float32)
    return numbers, scale


def _panel(forward: Tensor, backward: Tensor, bias: float | Tensor, rows: slice) -> Tensor:
    """Rows of K of the samples in `rows`, and columns of those from there on: [rows, o, n - rows.start, o]."""
    a, g = forward[rows], backward[rows]
    others, other_gradients = forward[rows.start :], backward[rows.start :]
    c, s, o, _ = g.shape
    panel = torch.zeros(c, o, len(others), o, dtype=g.dtype, device=g.device)
    for first in range(s):
        for second in range(s):
            p = a[:, first] @ others[:, second].T + bias  # [c, n - rows.start]
            q = g[:, first].flatten(0, 1) @ other_gradients[:, second].flatten(0, 1).T
            panel += p[:, None, :, None] * q.view(panel.shape)
    return panel


def _panels(backward: Tensor) -> list[slice]:
    n, _, o, _ = backward.shape
    step = max(1, chunk_elements(backward) // (n * o * o))
    return [slice(begin, min(begin + step, n)) for begin in range(0, n, step)]


def centered_moments(
    forward: list[Tensor],
    backward: list[Tensor],
    bias: list[float],
    row_means: list[Tensor],
    precision: str,
) -> Tensor:
    """See `ahkernels.ops.centered_moments`."""
    kernels = []
    # Kernels over samples alone come close to constant: in float64 no digits are lost to the constant part.
    double = backward[0].shape[2] == 1 and precision != "medium"
    for a, g, b, means in zip(forward, backward, bias, row_means, strict=True):
        a, g = (a.double(), g.double()) if double else (a, g)
        scaled_a, scale_a = _scaled(a, precision, b)
        scaled_g, scale_g = _scaled(g, precision)
        scale = scale_a**2 * scale_g**2
        kernels.append((scaled_a, scaled_g, b * scale_a**2, means * scale, scale))
    total = row_means[0].new_zeros(len(kernels), len(kernels))
    for rows in _panels(backward[0]):
        centered = []
        for a, g, scaled_bias, means, _ in kernels:
            panel = _panel(a, g, scaled_bias, rows)
            panel -= (means[rows] - means.mean()).to(panel.dtype)[:, :, None, None]
            panel -= means[rows.start :].to(panel.dtype)[None, None]
            centered.append(panel)
        for i, first in enumerate(centered):
            for j, second in enumerate(centered[: i + 1]):
                products = first * second  # past the samples in rows they stand for their mirror image too
                square = products[:, :, : len(products)].sum(dtype=torch.float64)
                total[i, j] += 2 * products.sum(dtype=torch.float64) - square
    for i, first_kernel in enumerate(kernels):
        for j, second_kernel in enumerate(kernels[: i + 1]):
            total[i, j] = total[i, j] / first_kernel[-1] / second_kernel[-1]
            total[j, i] = total[i, j]
    return total


def tangent_gram(forward: Tensor, backward: Tensor, bias: float, precision: str) -> Tensor:
    """See `ahkernels.ops.tangent_gram`."""
    a, scale_a = _scaled(forward, precision, bias)
    g, scale_g = _scaled(backward, precision)
    n, _, o, _ = backward.shape
    k = torch.empty(n, o, n, o, dtype=a.dtype, device=a.device)
    for rows in _panels(backward):
        panel = _panel(a, g, bias * scale_a**2, rows).double() / scale_a**2 / scale_g**2
        k[rows.start :, :, rows] = panel.permute(2, 3, 0, 1)
        corner = panel[:, :, : len(panel)].reshape(len(panel) * o, -1)
        panel[:, :, : len(panel)] = (corner.triu() + corner.triu(1).T).view(len(panel), o, len(panel), o)
        k[rows, :, rows.start :] = panel
    return k.view(n * o, n * o)


def tangent_diagonal(forward: Tensor, backward: Tensor, bias: float) -> Tensor:
    """See `ahkernels.ops.tangent_diagonal`."""
    a = forward.double()
    p = a @ a.mT + bias  # [n, s, s]
    diagonal = p.new_empty(backward.shape[0], backward.shape[2])
    for rows in _samples(backward, 1):
        g = backward[rows].double().transpose(1, 2)  # [rows, o, s, m]
        diagonal[rows] = (p[rows, None] * (g @ g.mT)).sum((2, 3))
    return diagonal


def tangent_product(forward: Tensor, backward: Tensor, bias: float, v: Tensor) -> Tensor:
    """See `ahkernels.ops.tangent_product`."""
    weights, sums = _through_parameters(forward, backward, v)
    out = torch.empty_like(v)
    for rows in _samples(backward, v.shape[2]):
        t = torch.einsum("vmd,xsd->xsvm", weights, forward[rows].double()) + bias * sums
        out[rows] = torch.einsum("xsim,xsvm->xiv", backward[rows].double(), t)
    return out


def tangent_quadratic(forward: Tensor, backward: Tensor, bias: float, v: Tensor) -> Tensor:
    """See `ahkernels.ops.tangent_quadratic`."""
    weights, sums = _through_parameters(forward, backward, v)
    return weights.square().sum((1, 2)) + bias * sums.square().sum(1)


def tangent_row_sums(forward: Tensor, backward: Tensor, bias: float) -> Tensor:
    """See `ahkernels.ops.tangent_row_sums`; here exact up to float64's rounding."""
    n, _, o, _ = backward.shape
    ones = torch.ones(n, o, 1, dtype=torch.float64, device=backward.device)
    return tangent_product(forward, backward, bias, ones)[..., 0]


def tangent_statistics(
    forward: list[Tensor], backward: list[Tensor], bias: list[float], v: Tensor, precision: str
) -> Tensor:
    """See `ahkernels.ops.tangent_statistics`."""
    ops = torch.ops.ahkernels  # the device's own, where it has some
    kernels = list(zip(forward, backward, bias, strict=True))
    columns = torch.cat((torch.ones_like(v), v), 2)
    products = [ops.tangent_product(*kernel, columns) for kernel in kernels]  # K 1 and K v
    sums = [product[..., 0] for product in products]
    forms = torch.stack([(product[..., 1] * v[..., 0]).sum() for product in products])
    moments = ops.centered_moments(forward, backward, bias, [s / s.numel() for s in sums], precision)
    traces = torch.stack([ops.tangent_diagonal(*kernel).sum() for kernel in kernels])
    return torch.stack((forms, moments.diagonal(), traces, torch.stack([s.sum() for s in sums])), 1)


def _samples(backward: Tensor, columns: int) -> list[slice]:
    n, s, o, m = backward.shape
    step = max(1, chunk_elements(backward) // max(1, s * m * max(columns, o)))
    return [slice(begin, min(begin + step, n)) for begin in range(0, n, step)]


def _through_parameters(forward: Tensor, backward: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """M_v = sum over samples and uses of (sum_i v_i g^i) a^T, [columns, m, d], and the sums without a, [columns, m]."""
    m, d, columns = backward.shape[3], forward.shape[2], v.shape[2]
    weights, sums = v.new_zeros(columns, m, d), v.new_zeros(columns, m)
    for rows in _samples(backward, columns):
        h = torch.einsum("xsim,xiv->xsvm", backward[rows].double(), v[rows])
        weights += torch.einsum("xsvm,xsd->vmd", h, forward[rows].double())
        sums += h.sum((0, 1))
    return weights, sums
