"""The ops in plain torch, chunked and centered as the kernels are: for devices without kernels.

Slower, with the same answer. Memory beyond the factors stays within a few times ``chunk_elements`` numbers at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ahkernels.ops.scaling import power_of_two

T = TypeVar("T")


def chunk_elements(factor: Tensor) -> int:
    """Numbers at a time: for the caches of a processor, or enough to keep another device busy."""
    return 1 << 23 if factor.device.type == "cpu" else 1 << 26


def tile_dtype(factor: Tensor) -> torch.dtype:
    """The dtype of tiles and of a materialised K: float64 for float64 factors, else float32."""
    return torch.float64 if factor.dtype == torch.float64 else torch.float32


def terms_of(
    forward: Sequence[Tensor], backward: Sequence[Tensor], bias: Sequence[float], by_jacobian: Sequence[bool]
) -> list[tuple[Tensor, Tensor, float, bool]]:
    """The terms one by one, each with its route."""
    return list(zip(forward, backward, bias, by_jacobian or [False] * len(forward), strict=True))


def in_sums(numbers: Sequence[T], terms: Sequence[int]) -> list[list[T]]:
    """The numbers of each kernel's terms, where `terms` counts them; each a kernel of its own where that is empty."""
    rest = iter(numbers)
    return [[next(rest) for _ in range(count)] for count in terms or [1] * len(numbers)]


def smallest(scales: Sequence[Tensor]) -> Tensor:
    """That of the largest term, which all terms of a kernel are computed with."""
    return torch.stack(list(scales)).amin()


class ScaledTerm(NamedTuple):
    """Factors times powers of two, and what that makes of the term."""

    forward: Tensor
    backward: Tensor
    bias: Tensor | float
    by_jacobian: bool
    scale: Tensor

    @classmethod
    def of(cls, forward: Tensor, backward: Tensor, bias: float, by_jacobian: bool, precision: str) -> ScaledTerm:
        """See `power_of_two`."""
        scale_a, scale_g = power_of_two(forward, bias), power_of_two(backward)
        return cls(
            _rounded(forward, scale_a, precision),
            _rounded(backward, scale_g, precision),
            bias * scale_a**2 if bias else 0.0,
            by_jacobian,
            scale_a**2 * scale_g**2,
        )

    def panel(self, rows: slice) -> Tensor:
        """Its entries for the samples in rows and those from there on, [rows, o, n - rows.start, o]."""
        return self.samples(rows).against(self.samples(slice(rows.start, None)))

    def samples(self, rows: slice) -> ScaledTerm:
        """The term of some samples."""
        return self._replace(forward=self.forward[rows], backward=self.backward[rows])

    def against(self, others: ScaledTerm) -> Tensor:
        """Entries between these samples and those of another term of the same layer, [n, o, n', o']."""
        (n, s, o, _), (other_n, other_s, other_o, _) = self.backward.shape, others.backward.shape
        panel = self.backward.new_zeros(n, o, other_n, other_o)
        if self.by_jacobian:
            step = jacobian_step(others.forward, others.backward)
            for j, k in zip(self.jacobian_slices(step), others.jacobian_slices(step), strict=True):
                panel += (j.flatten(0, 1) @ k.flatten(0, 1).T).view(panel.shape)
            return panel
        for first in range(s):
            for second in range(other_s):
                p = self.forward[:, first] @ others.forward[:, second].T  # [n, n']
                p += (self.bias * others.bias) ** 0.5  # each at its own scale
                q = self.backward[:, first].flatten(0, 1) @ others.backward[:, second].flatten(0, 1).T
                panel += p[:, None, :, None] * q.view(panel.shape)
        return panel

    def jacobian_slices(self, step: int) -> Iterator[Tensor]:
        """See `jacobian_slices`."""
        return jacobian_slices(self.forward, self.backward, self.bias, step)


def _rounded(factor: Tensor, scale: Tensor, precision: str) -> Tensor:
    numbers = factor.to(tile_dtype(factor)) * scale.to(tile_dtype(factor))
    if precision == "medium" and numbers.dtype == torch.float32:
        numbers = numbers.to(torch.bfloat16).to(torch.float32)
    return numbers


def jacobian_step(forward: Tensor, backward: Tensor) -> int:
    """Pre-activations in a slice of the parameters."""
    return max(1, chunk_elements(backward) // max(1, backward.shape[0] * backward.shape[2] * forward.shape[2]))


def jacobian_slices(forward: Tensor, backward: Tensor, bias: Tensor | float, step: int) -> Iterator[Tensor]:
    """J = sum_s g_s a_s^T [n, o, numbers] in slices of the parameters, and last for a bias sqrt(b) sum_s g_s."""
    m, d = backward.shape[3], forward.shape[2]
    for begin in range(0, m if d else 0, step):
        yield torch.einsum("xsom,xsd->xomd", backward[..., begin : begin + step], forward).flatten(2)
    if isinstance(bias, Tensor) or bias:
        yield backward.sum(1) * torch.as_tensor(bias, dtype=torch.float64, device=backward.device).sqrt()


def sum_panel(terms: Sequence[ScaledTerm], rows: slice) -> Tensor:
    """`ScaledTerm.panel` of a sum, at the scale of its largest term."""
    scale = smallest([term.scale for term in terms])
    panel: Tensor | None = None
    for term in terms:
        part = term.panel(rows)
        if len(terms) > 1:
            part *= (scale / term.scale).to(part.dtype)
        panel = part if panel is None else panel.add_(part)
    assert panel is not None
    return panel


def moments_of_panels(
    panels: Callable[[slice], list[Tensor]],
    rows: Sequence[slice],
    subtract: Callable[[int, Tensor, slice], None],
    scales: list[Tensor],
) -> Tensor:
    """Inner products of centered kernels from `panels` of all of them (see `ScaledTerm.panel`), times their scales.

    `subtract` takes the means out of a panel of one of them.
    """
    total = torch.zeros(len(scales), len(scales), dtype=torch.float64, device=scales[0].device)
    for now in rows:
        centered = panels(now)
        for index, panel in enumerate(centered):
            subtract(index, panel, now)
        for i, first in enumerate(centered):
            for j, second in enumerate(centered[: i + 1]):
                products = first * second  # past the samples in rows they stand for their mirror image too
                square = products[:, :, : len(products)].sum(dtype=torch.float64)
                total[i, j] += 2 * products.sum(dtype=torch.float64) - square
    for i, scale in enumerate(scales):
        for j, other in enumerate(scales[: i + 1]):
            total[i, j] = total[i, j] / scale / other
            total[j, i] = total[i, j]
    return total


def subtract_row_means(row_means: list[Tensor], scales: list[Tensor]) -> Callable[[int, Tensor, slice], None]:
    """For `moments_of_panels`: means [n, o] of each kernel's rows, and the mean of all in those of the panel's."""
    means = [mean * scale for mean, scale in zip(row_means, scales, strict=True)]

    def subtract(index: int, panel: Tensor, now: slice) -> None:
        mean = means[index]
        panel -= (mean[now] - mean.mean()).to(panel.dtype)[:, :, None, None]
        panel -= mean[now.start :].to(panel.dtype)[None, None]

    return subtract


def gram_of_panels(panel_of: Callable[[slice], Tensor], rows: Sequence[slice], n: int, o: int, scale: Tensor) -> Tensor:
    """K from its panels (see `ScaledTerm.panel`), times scale."""
    k: Tensor | None = None
    for now in rows:
        panel = panel_of(now)
        if k is None:
            k = panel.new_empty(n, o, n, o)
        panel = panel.double() / scale
        k[now.start :, :, now] = panel.permute(2, 3, 0, 1).to(k.dtype)
        panel[:, :, : len(panel)] = mirrored(panel[:, :, : len(panel)])
        k[now, :, now.start :] = panel.to(k.dtype)
    assert k is not None
    return k.view(n * o, n * o)


def mirrored(corner: Tensor) -> Tensor:
    """[c, o, c, o] with what is above the diagonal also below it."""
    square = corner.reshape(corner.shape[0] * corner.shape[1], -1)
    return (square.triu() + square.triu(1).T).view(corner.shape)


def centered_moments(
    forward: list[Tensor],
    backward: list[Tensor],
    bias: list[float],
    row_means: list[Tensor],
    precision: str,
    by_jacobian: Sequence[bool] = (),
    terms: Sequence[int] = (),
) -> Tensor:
    """See `ahkernels.ops.centered_moments`."""
    n, _, o, _ = backward[0].shape
    if o == 1 and precision != "medium":
        # Kernels over samples alone come close to constant: in float64 no digits are lost to the constant part.
        forward, backward = [a.double() for a in forward], [g.double() for g in backward]
    scaled = [ScaledTerm.of(*term, precision) for term in terms_of(forward, backward, bias, by_jacobian)]
    kernels = in_sums(scaled, terms)
    scales = [smallest([term.scale for term in kernel]) for kernel in kernels]
    return moments_of_panels(
        lambda rows: [sum_panel(kernel, rows) for kernel in kernels],
        _steps(n, chunk_elements(backward[0]), n * o * o),
        subtract_row_means(row_means, scales),
        scales,
    )


def per_output_moments(
    forward: list[Tensor],
    backward: list[Tensor],
    bias: list[float],
    precision: str,
    by_jacobian: Sequence[bool] = (),
    terms: Sequence[int] = (),
) -> Tensor:
    """See `ahkernels.ops.per_output_moments`; in float64 but at "medium", in two passes over panels."""
    n, _, o, _ = backward[0].shape
    if precision != "medium":
        # Blocks come close to constant: in float64 no digits are lost to the constant part.
        forward, backward = [a.double() for a in forward], [g.double() for g in backward]
    scaled = [ScaledTerm.of(*term, precision) for term in terms_of(forward, backward, bias, by_jacobian)]
    kernels = in_sums(scaled, terms)
    scales = [smallest([term.scale for term in kernel]) for kernel in kernels]
    steps = _steps(n, chunk_elements(backward[0]), n * o * o)
    means = [v.new_zeros(n, o, o, dtype=torch.float64) for v in scales]  # of rows, by the output of the columns
    for now in steps:
        for kernel, of_kernel in zip(kernels, means, strict=True):
            panel, count = sum_panel(kernel, now).double(), now.stop - now.start
            of_kernel[now] += panel.sum(2) / n
            of_kernel[now.stop :] += panel[:, :, count:].sum(0).permute(1, 2, 0) / n

    def subtract(index: int, panel: Tensor, now: slice) -> None:
        mean = means[index]
        panel -= (mean[now] - mean.mean(0)).to(panel.dtype)[:, :, None]
        panel -= mean[now.start :].to(panel.dtype).permute(2, 0, 1)

    per_output = moments_of_panels(
        lambda rows: [sum_panel(kernel, rows) for kernel in kernels], steps, subtract, scales
    )
    return torch.stack((per_output + _between_outputs(means, scales), per_output))


def _between_outputs(means: list[Tensor], scales: list[Tensor]) -> Tensor:
    """What the inner products of kernels centered as a whole have beyond those of kernels centered per output, [q, q].

    2n <Z_a B, Z_b B> + n^2 <B m_a B, B m_b B> with the means [n, o, o] of rows by output M times scales, their mean m
    over the samples, Z = M - m and B = I_o - 11^T/o.
    """
    found = means[0].new_empty(len(means), len(means))
    deviations, blocks = [], []
    for mean, scale in zip(means, scales, strict=True):
        unscaled = mean / scale
        block = unscaled.mean(0)
        deviation = unscaled - block
        deviations.append(deviation - deviation.mean(2, keepdim=True))
        blocks.append(block - block.mean(0) - block.mean(1, keepdim=True) + block.mean())
    n = len(means[0])
    for i in range(len(means)):
        for j in range(len(means)):
            found[i, j] = 2 * n * (deviations[i] * deviations[j]).sum() + n**2 * (blocks[i] * blocks[j]).sum()
    return found


def tangent_gram(
    forward: list[Tensor],
    backward: list[Tensor],
    bias: list[float],
    precision: str,
    by_jacobian: Sequence[bool] = (),
) -> Tensor:
    """See `ahkernels.ops.tangent_gram`."""
    n, _, o, _ = backward[0].shape
    kernel = [ScaledTerm.of(*term, precision) for term in terms_of(forward, backward, bias, by_jacobian)]
    scale = smallest([term.scale for term in kernel])
    rows = _steps(n, chunk_elements(backward[0]), n * o * o)
    return gram_of_panels(lambda now: sum_panel(kernel, now), rows, n, o, scale)


def tangent_diagonal(forward: Tensor, backward: Tensor, bias: float, by_jacobian: bool = False) -> Tensor:
    """See `ahkernels.ops.tangent_diagonal`."""
    diagonal = forward.new_empty(backward.shape[0], backward.shape[2], dtype=torch.float64)
    s, o, m = backward.shape[1:]
    for rows in _steps(len(backward), chunk_elements(backward), s * max(o * m, forward.shape[2], s)):
        a, g = forward[rows].double(), backward[rows].double()
        if by_jacobian:
            diagonal[rows] = 0
            for j in jacobian_slices(a, g, bias, jacobian_step(a, g)):
                diagonal[rows] += j.square().sum(2)
            continue
        p = a @ a.mT + bias  # [rows, s, s]
        g = g.transpose(1, 2)  # [rows, o, s, m]
        diagonal[rows] = (p[:, None] * (g @ g.mT)).sum((2, 3))
    return diagonal


def tangent_product(forward: Tensor, backward: Tensor, bias: float, v: Tensor, fp32: bool = False) -> Tensor:
    """See `ahkernels.ops.tangent_product`; here always in float64."""
    return tangent_cross_product(forward, backward, forward, backward, bias, v)


def tangent_cross_product(
    forward: Tensor, backward: Tensor, other_forward: Tensor, other_backward: Tensor, bias: float, v: Tensor
) -> Tensor:
    """See `ahkernels.ops.tangent_cross_product`."""
    numbers = chunk_elements(backward)
    through_samples = _fewer_flops_through_samples(forward, other_forward, backward.shape[3], passes=2)
    route = _entries_through_samples if through_samples else _entries_through_parameters
    out = v.new_zeros(*backward.shape[::2], v.shape[2])
    for rows, pre_activations, t in route(forward, other_forward, other_backward, bias, v, numbers):
        g, sums = backward[rows][..., pre_activations], out[rows]
        for now in _steps(len(g), numbers, g[0].numel()):
            sums[now] += torch.einsum("xsim,xsvm->xiv", g[now].double(), t[now])
    return out


def tangent_quadratic(forward: Tensor, backward: Tensor, bias: float, v: Tensor) -> Tensor:
    """See `ahkernels.ops.tangent_quadratic`."""
    forms = v.new_zeros(v.shape[2])
    numbers = chunk_elements(backward)
    if _fewer_flops_through_samples(forward, forward, backward.shape[3], passes=1):
        for rows, pre_activations, t in _entries_through_samples(forward, forward, backward, bias, v, numbers):
            g, weights = backward[rows][..., pre_activations], v[rows]
            for now in _steps(len(g), numbers, g[0].numel()):
                h = torch.einsum("xsim,xiv->xsvm", g[now].double(), weights[now])
                forms += (h * t[now]).sum((0, 1, 3))
        return forms
    for _, weights, sums in _weights(forward, backward, v, numbers):
        forms += weights.square().sum((1, 2)) + bias * sums.square().sum(1)
    return forms


def tangent_row_sums(forward: Tensor, backward: Tensor, bias: float) -> Tensor:
    """See `ahkernels.ops.tangent_row_sums`; here exact up to float64's rounding."""
    n, _, o, _ = backward.shape
    ones = torch.ones(n, o, 1, dtype=torch.float64, device=backward.device)
    return tangent_product(forward, backward, bias, ones)[..., 0]


def tangent_statistics(
    forward: list[Tensor],
    backward: list[Tensor],
    bias: list[float],
    v: Tensor,
    precision: str,
    by_jacobian: Sequence[bool] = (),
    terms: Sequence[int] = (),
    per_output: bool = False,
) -> Tensor:
    """See `ahkernels.ops.tangent_statistics`."""
    if per_output:
        return _both_statistics(forward, backward, bias, v, precision, by_jacobian, terms)
    ops = torch.ops.ahkernels  # the device's own, where it has some
    columns = torch.cat((torch.ones_like(v), v), 2)
    products, traces = [], []  # K 1 and K v
    for a, g, b, route in terms_of(forward, backward, bias, by_jacobian):
        products.append(ops.tangent_product(a, g, b, columns))
        traces.append(ops.tangent_diagonal(a, g, b, route).sum())
    of_kernels = [torch.stack(products).sum(0) for products in in_sums(products, terms)]
    sums = [product[..., 0] for product in of_kernels]
    forms = torch.stack([(product[..., 1] * v[..., 0]).sum() for product in of_kernels])
    means = [s / s.numel() for s in sums]
    moments = ops.centered_moments(forward, backward, bias, means, precision, by_jacobian, terms)
    trace = torch.stack([torch.stack(traces).sum() for traces in in_sums(traces, terms)])
    return torch.stack((forms, moments.diagonal(), trace, torch.stack([s.sum() for s in sums])), 1)


def _both_statistics(
    forward: list[Tensor],
    backward: list[Tensor],
    bias: list[float],
    v: Tensor,
    precision: str,
    by_jacobian: Sequence[bool],
    terms: Sequence[int],
) -> Tensor:
    """`tangent_statistics` with both centerings: forms and sums from products, squares from panels."""
    ops = torch.ops.ahkernels  # the device's own, where it has some
    n, o = v.shape[:2]
    blocks = torch.eye(o, dtype=v.dtype, device=v.device).expand(n, o, o)  # a column of ones at each output
    columns = torch.cat((v, v - v.mean(0), torch.ones_like(v), blocks), 2)
    forms, traces = [], []
    for a, g, b, route in terms_of(forward, backward, bias, by_jacobian):
        forms.append(ops.tangent_quadratic(a, g, b, columns))
        traces.append(ops.tangent_diagonal(a, g, b, route).sum())
    form = torch.stack([torch.stack(of_kernel).sum(0) for of_kernel in in_sums(forms, terms)])  # [q, 3 + o]
    trace = torch.stack([torch.stack(of_kernel).sum() for of_kernel in in_sums(traces, terms)])
    squares = ops.per_output_moments(forward, backward, bias, precision, by_jacobian, terms).diagonal(dim1=1, dim2=2)
    return torch.stack(
        (form[:, 0], squares[0], trace, form[:, 2], form[:, 1], squares[1], trace, form[:, 3:].sum(1)), 1
    )


def _steps(count: int, numbers: int, numbers_of_one: int) -> list[slice]:
    """All of `count` things, in steps of no more than so many numbers where one alone has not more."""
    step = max(1, numbers // max(1, numbers_of_one))
    return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]


def _fewer_flops_through_samples(forward: Tensor, other_forward: Tensor, m: int, passes: int) -> bool:
    """Whether g . (P . (g^T v)) takes fewer flops than g . ((g^T v) a^T . a), which passes over m d weights.

    For equal sample sets and two passes it does where n s < 2 m d / (m + d).
    """
    d = forward.shape[2]
    rows, columns = forward.shape[0] * forward.shape[1], other_forward.shape[0] * other_forward.shape[1]
    return rows * columns * (d + m) <= (columns + (passes - 1) * rows) * m * d


def _entries_through_samples(
    forward: Tensor, other_forward: Tensor, other_backward: Tensor, bias: float, v: Tensor, numbers: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Sums t over other samples and uses of (<a, a'> + b) sum_i v_i g^i', by samples and by pre-activations.

    Yields the samples of forward, the pre-activations and t [samples, s, columns, pre-activations]. P and t take no
    more than `numbers` each where those of one sample do not.
    """
    (n, s, d), (others, other_s, o, m), columns = forward.shape, other_backward.shape, v.shape[2]
    for rows in _steps(n, numbers, s * max(others * other_s, d)):
        a = forward[rows].double().flatten(0, 1)  # [rows * s, d]
        p = a.new_empty(len(a), others, other_s)
        for now in _steps(others, numbers, other_s * d):
            p[:, now] = (a @ other_forward[now].double().flatten(0, 1).T).view(len(a), -1, other_s) + bias
        for pre_activations in _steps(m, numbers, max(len(a), s) * columns):
            width = pre_activations.stop - pre_activations.start
            t = a.new_zeros(len(a), columns * width)
            for now in _steps(others, numbers, other_s * max(o, columns) * width):
                g = other_backward[now, ..., pre_activations].double()
                h = torch.einsum("xsim,xiv->xsvm", g, v[now])
                t.addmm_(p[:, now].flatten(1), h.flatten(0, 1).flatten(1))
            yield rows, pre_activations, t.view(-1, s, columns, width)


def _entries_through_parameters(
    forward: Tensor, other_forward: Tensor, other_backward: Tensor, bias: float, v: Tensor, numbers: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The same as `_entries_through_samples`, as M_v a + b sum h."""
    n, s, d = forward.shape
    for pre_activations, weights, sums in _weights(other_forward, other_backward, v, numbers):
        columns, width, _ = weights.shape
        for rows in _steps(n, numbers, s * max(d, columns * width)):
            t = torch.einsum("vmd,xsd->xsvm", weights, forward[rows].double())
            yield rows, pre_activations, t + bias * sums


def _weights(forward: Tensor, backward: Tensor, v: Tensor, numbers: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Sums M_v over samples and uses of h a^T with h = sum_i v_i g^i, by pre-activations.

    Yields the pre-activations, M_v [columns, pre-activations, d] and the sums of h, [columns, pre-activations]. M_v
    takes no more than `numbers` where that of one pre-activation does not.
    """
    (n, s, o, m), d, columns = backward.shape, forward.shape[2], v.shape[2]
    for pre_activations in _steps(m, numbers, columns * d):
        width = pre_activations.stop - pre_activations.start
        weights, sums = v.new_zeros(columns, width, d), v.new_zeros(columns, width)
        for rows in _steps(n, numbers, s * max(d, max(o, columns) * width)):
            h = torch.einsum("xsim,xiv->xsvm", backward[rows][..., pre_activations].double(), v[rows])
            weights += torch.einsum("xsvm,xsd->vmd", h, forward[rows].double())
            sums += h.sum((0, 1))
        yield pre_activations, weights, sums
