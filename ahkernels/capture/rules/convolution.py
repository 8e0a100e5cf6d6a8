"""Convolutions of one group: at each output position a Linear of the patch under the kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class ConvolutionRule:
    """a are the patches and g the gradient at the output, at each output position."""

    def parameters(self, module: Any) -> list[str]:
        """Weight, and bias where there is one; none of a convolution in groups."""
        if module.groups != 1:
            return []
        return ["weight"] if module.bias is None else ["weight", "bias"]

    def record(self, module: Any, inputs: tuple[Any, ...]) -> Tensor | None:
        """The padded input [n, c, ...]; None where it has no dimension of samples."""
        (x,) = inputs
        if x.dim() != len(module.kernel_size) + 2:
            return None
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        # As the module itself pads: from the last dimension to the first, before and after.
        padded: Tensor = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        return padded

    def factors(self, module: Any, recorded: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [n, p, c * kernel] and gradients [r, n, p, channels]."""
        dims = len(module.kernel_size)
        patches = recorded
        for dim in range(dims):
            reach = module.dilation[dim] * (module.kernel_size[dim] - 1) + 1
            patches = patches.unfold(2 + dim, reach, module.stride[dim])  # [n, c, positions..., reach...]
            patches = patches[..., :: module.dilation[dim]]
        n, c = patches.shape[:2]
        order = [0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims)]
        kernel = torch.Size(module.kernel_size).numel()
        a = patches.permute(order).reshape(n, -1, c * kernel)
        return a, gradient.flatten(3).transpose(2, 3)

    def has_bias(self, module: Any) -> bool:
        """Whether the convolution has a bias."""
        return bool(module.bias is not None)
