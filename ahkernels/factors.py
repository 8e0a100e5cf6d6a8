"""The factors of a layer's tangent kernel: what capture hands on and all else is computed from."""

from __future__ import annotations

from dataclasses import InitVar, dataclass

import torch
from torch import Tensor

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """Forward and backward factors of one layer, of any strides.

    Attributes:
        forward: [n, s, d], the layer's input at each of the s times it is used.
        backward: [n, s, o, m], the gradient of each output with respect to the layer's pre-activations there.
        bias: Whether the layer has a bias.
        layer: The layer's name, for messages.
        by_jacobian: Whether a layer of several uses is contracted through its Jacobian sum_s g_s a_s^T, a slice of the
            parameters at a time, and not by pairs of uses; the kernel is the same.
        unchecked: Whether to leave out the search for nan and inf, which waits for the device.
    """

    forward: Tensor
    backward: Tensor
    bias: bool
    layer: str = ""
    by_jacobian: bool = False
    unchecked: InitVar[bool] = False

    def __post_init__(self, unchecked: bool) -> None:
        """Raises ValueError naming the argument and the layer, also for nan or inf in a factor."""
        where = f" of layer {self.layer!r}" if self.layer else ""
        a, g = self.forward, self.backward
        if a.dim() != 3:
            raise ValueError(f"forward{where}: expected shape [n, s, d], got {list(a.shape)}")
        if g.dim() != 4:
            raise ValueError(f"backward{where}: expected shape [n, s, o, m], got {list(g.shape)}")
        if a.shape[:2] != g.shape[:2]:
            raise ValueError(
                f"backward{where}: expected n and s of forward, {list(a.shape[:2])}, got {list(g.shape[:2])}"
            )
        if 0 in g.shape[:3]:
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
        """Raises ValueError naming the factor and the layer where there is nan or inf."""
        where = f" of layer {self.layer!r}" if self.layer else ""
        for name, factor in (("forward", self.forward), ("backward", self.backward)):
            if factor.numel() and not is_finite(factor.detach()):
                raise ValueError(f"{name} factor{where}: expected finite numbers, got nan or inf")

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.backward.shape[0]

    @property
    def factored(self) -> bool:
        """Whether there is a forward factor; without one, backward is the Jacobian itself."""
        return self.forward.shape[2] > 0

    @property
    def o(self) -> int:
        """Number of outputs, that is of the kernel's rows for each sample."""
        return self.backward.shape[2]


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither nan nor inf in a tensor with at least one number."""
    low, high = tensor.aminmax()  # one pass, in which nan wins
    return bool(torch.isfinite(high - low)) or bool(torch.isfinite(torch.stack((low, high))).all())
