"""The factors of a layer's tangent kernel: what capture hands on and all else is computed from."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, replace

import torch
from torch import Tensor

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NUMBERS_SUMMED = 1 << 21  # that are in float64 at a time, for sums over positions


class NonFiniteError(ValueError):
    """There is nan or inf in the factors of a layer, as in a network that diverged; the message names the layer."""


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """Forward and backward factor of one layer, with any strides.

    Its tangent kernel is K[(x, i), (x', j)] = sum_{s, s'} (<a_s(x), a_s'(x')> + b) <g_s^i(x), g_s'^j(x')> over pairs of
    positions s and s', with b = 1 for a layer with a bias and 0 for one without.

    Attributes:
        forward: a [n, s, d], the inputs of the layer at its s positions.
        backward: g [n, s, o, m], the gradients of the outputs with respect to the layer's pre-activations there.
        bias: Whether the layer has a bias.
        layer: Name of the layer, for messages.
        by_jacobian: Whether a layer with several positions is contracted through its Jacobian sum_s g_s a_s^T, a slice
            of the parameters at a time, instead of by pairs of positions; the kernel is the same.
        root: None for factors and for a Jacobian. Where backward is a square root of the kernel, whose columns stand
            for no parameters, an object that all factors from this one root share.
        unchecked: Whether to leave out the search for nan and inf, which waits for the device. There may be no sample
            then.

    Raises:
        TypeError: If a factor is no tensor.
        ValueError: If shapes, dtypes or devices do not fit; the message names the argument and the layer.
        NonFiniteError: If there is nan or inf.

    Example:
        >>> import torch, ahkernels as ah
        >>> a, g = torch.ones(5, 1, 3), torch.ones(5, 1, 2, 4)  # 5 samples, 3 inputs, 2 outputs, 4 units
        >>> ah.TangentKernel(ah.LayerFactors(a, g, bias=True)).trace()  # (3 + 1) * 4 for each of 10 rows
        160.0
    """

    forward: Tensor
    backward: Tensor
    bias: bool
    layer: str = ""
    by_jacobian: bool = False
    root: object = None
    unchecked: InitVar[bool] = False

    def __post_init__(self, unchecked: bool) -> None:
        where = f" of layer {self.layer!r}" if self.layer else ""
        a, g = self.forward, self.backward
        for name, factor, shape in (("forward", a, "[n, s, d]"), ("backward", g, "[n, s, o, m]")):
            if not isinstance(factor, Tensor):
                raise TypeError(f"{name}{where}: expected a tensor {shape}, got {type(factor).__name__}")
        if a.dim() != 3:
            raise ValueError(f"forward{where}: expected shape [n, s, d], got {list(a.shape)}")
        if g.dim() != 4:
            raise ValueError(f"backward{where}: expected shape [n, s, o, m], got {list(g.shape)}")
        if a.shape[:2] != g.shape[:2]:
            raise ValueError(
                f"backward{where}: expected n and s of forward, {list(a.shape[:2])}, got {list(g.shape[:2])}"
            )
        if 0 in g.shape[unchecked:3]:
            raise ValueError(f"backward{where}: expected n, s and o of at least 1, got {list(g.shape[:3])}")
        if a.dtype not in _DTYPES or g.dtype != a.dtype:
            raise ValueError(
                f"backward{where}: expected forward and backward of one real floating dtype, got {a.dtype} and "
                f"{g.dtype}"
            )
        if a.device != g.device:
            raise ValueError(f"backward{where}: expected the device of forward, {a.device}, got {g.device}")
        if not unchecked:
            self.require_finite()

    def require_finite(self) -> None:
        """Raises NonFiniteError naming the factor and the layer if there is nan or inf."""
        where = f" of layer {self.layer!r}" if self.layer else ""
        for name, factor in (("forward", self.forward), ("backward", self.backward)):
            if factor.numel() and not is_finite(factor.detach()):
                raise NonFiniteError(f"{name} factor{where}: expected finite numbers, got nan or inf")

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.backward.shape[0]

    @property
    def positions(self) -> int:
        """Number of positions s."""
        return self.backward.shape[1]

    @property
    def o(self) -> int:
        """Number of outputs, which is the number of the kernel's rows for each sample."""
        return self.backward.shape[2]

    def at_one_position(self) -> LayerFactors:
        """Factors with one position and the same Grams: the sums over positions, with s as one more input for a bias.

        Several positions give float32, or float64 for float64; a single one is returned as it is.
        """
        if self.positions == 1:
            return self
        a, g = sums_over_positions(self.forward, self.backward, self.bias)
        return LayerFactors(a, g, False, self.layer, unchecked=True)

    @property
    def factored(self) -> bool:
        """Whether there is a forward factor; without one, backward is the Jacobian itself."""
        return self.forward.shape[2] > 0


def of_one_dtype(layers: Sequence[LayerFactors]) -> list[LayerFactors]:
    """The same factors, all of the widest dtype among them."""
    dtype = functools.reduce(torch.promote_types, [one.forward.dtype for one in layers])
    if all(one.forward.dtype == dtype for one in layers):
        return list(layers)
    return [
        replace(one, forward=one.forward.to(dtype), backward=one.backward.to(dtype), unchecked=True) for one in layers
    ]


def sums_over_positions(a: Tensor, g: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Factors with one position and, without a bias, the same Grams.

    Args:
        a: The forward factor [n, s, d].
        g: The backward factor [n, s, o, m].
        bias: Whether there is a bias; s is one more input then.

    Returns:
        a [n, 1, d + b] and g [n, 1, o, m], in float32, or float64 for float64.
    """
    a_sum, g_sum = sum_over_positions(a), sum_over_positions(g)
    if bias:
        a_sum = torch.cat((a_sum, a_sum.new_full((1,), a.shape[1]).expand(len(a), 1, 1)), 2)
    return a_sum, g_sum


def sum_over_positions(factor: Tensor) -> Tensor:
    """Sums a factor [n, s, ...] over its positions.

    Args:
        factor: A forward or a backward factor.

    Returns:
        The sums [n, 1, ...], which are those of float64 rounded to float32, or to float64 for a factor in float64.
    """
    dtype = torch.float64 if factor.dtype == torch.float64 else torch.float32
    sums = factor.new_empty(len(factor), 1, *factor.shape[2:], dtype=dtype)
    step = max(1, _NUMBERS_SUMMED // max(1, factor[0].numel()))
    for to, some in zip(torch.split(sums, step), torch.split(factor.detach(), step), strict=True):
        to.copy_(some.sum(1, keepdim=True, dtype=torch.float64))
    return sums


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither nan nor inf in a tensor with at least one number."""
    low, high = tensor.aminmax()  # one pass, in which nan wins
    return bool(torch.isfinite(high - low)) or bool(torch.isfinite(torch.stack((low, high))).all())
