"""Convolutions: at each output position a Linear of the patch under the kernel, or in groups several side by side.

A convolution in groups has few parameters for its positions, so that its Jacobian itself is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def patches(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """What lies under the kernel at each of its positions on x: a view [..., positions, kernel] of [..., sizes]."""
    dims = len(kernel)
    for dim in range(dims):
        reach = dilation[dim] * (kernel[dim] - 1) + 1
        x = x.unfold(x.dim() - dims, reach, stride[dim])  # unfolds the first dimension left, and puts its window last
        x = x[..., :: dilation[dim]]
    return x


def with_bias(jacobian: Tensor, gradient: Tensor, bias: Tensor | None) -> Tensor:
    """[r, n, 1, parameters] of a weight's Jacobian [r, n, numbers] and gradients at the output [r, n, channels, p]."""
    return (jacobian if bias is None else torch.cat((jacobian, gradient.sum(3)), 2)).unsqueeze(2)


class ConvolutionRule:
    """a are the patches and g the gradient at the output, at each output position."""

    def parameters(self, module: Any) -> list[str]:
        """Weight, and bias where there is one."""
        return ["weight"] if module.bias is None else ["weight", "bias"]

    def record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The padded input [n, c, ...]; None where it has no dimension of samples."""
        (x,) = (*args, *kwargs.values())
        if x.dim() != len(module.kernel_size) + 2:
            return None
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        # As the module itself pads: from the last dimension to the first, before and after.
        padded: Tensor = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        return padded

    def factors(self, module: Any, recorded: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [n, p, c * kernel] and gradients [r, n, p, channels]; in groups the Jacobian."""
        n, c = recorded.shape[:2]
        dims, groups = len(module.kernel_size), module.groups
        under = patches(recorded, module.kernel_size, module.stride, module.dilation)  # [n, c, positions..., kernel...]
        order = [0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims)]
        numbers = c // groups * torch.Size(module.kernel_size).numel()
        a = under.permute(order).reshape(n, -1, groups * numbers)
        g = gradient.flatten(3)  # [r, n, channels, p]
        if groups == 1:
            return a, g.transpose(2, 3)
        jacobian = torch.einsum(
            "rngmp,npgd->rngmd", torch.unflatten(g, 2, (groups, -1)), torch.unflatten(a, 2, (groups, numbers))
        )
        return a.new_empty(n, 1, 0), with_bias(jacobian.flatten(2), g, module.bias)

    def has_bias(self, module: Any) -> bool:
        """Whether the convolution has a bias, or is in groups: beside a Jacobian there is a forward Gram of ones."""
        return module.bias is not None or module.groups > 1


RULES = dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), ConvolutionRule())
