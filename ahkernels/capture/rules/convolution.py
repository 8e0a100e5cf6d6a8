"""The rule for convolutions: at each output position, they are a Linear on the patch under the convolution's kernel.

A grouped convolution has several of them side by side. It has few parameters for its many positions, so that its
Jacobian itself is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def patches(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Takes the patch of x under the convolution's kernel at each position.

    Args:
        x: [..., *sizes], already padded.
        kernel: The sizes of the kernel.
        stride: Steps between positions, for each dimension.
        dilation: Steps between the kernel's points, for each dimension.

    Returns:
        A view [..., *positions, *kernel] of x.
    """
    dims = len(kernel)
    for dim in range(dims):
        reach = dilation[dim] * (kernel[dim] - 1) + 1
        x = x.unfold(x.dim() - dims, reach, stride[dim])  # unfolds the first dimension left, and puts its window last
        x = x[..., :: dilation[dim]]
    return x


def with_bias(jacobian: Tensor, gradient: Tensor, bias: Tensor | None) -> Tensor:
    """Puts the Jacobian of a bias, where there is one, beside the Jacobian of a weight.

    Args:
        jacobian: The Jacobian of the weight [r, n, numbers].
        gradient: The gradients at the output [r, n, channels, p].
        bias: The bias or None.

    Returns:
        The Jacobian [r, n, 1, parameters] as a backward factor.
    """
    return (jacobian if bias is None else torch.cat((jacobian, gradient.sum(3)), 2)).unsqueeze(2)


class ConvolutionRule:
    """At each output position, a is the patch of the input and g the gradient at the output."""

    def parameters(self, module: Any) -> list[str]:
        """Lists weight, and bias where there is one."""
        return ["weight"] if module.bias is None else ["weight", "bias"]

    def record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Keeps the padded input [n, c, *sizes]; None if it has no dimension of samples."""
        (x,) = (*args, *kwargs.values())
        if x.dim() != len(module.kernel_size) + 2:
            return None
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        # The module's own padding runs from the last dimension to the first, before and after.
        padded: Tensor = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        return padded

    def factors(self, module: Any, recorded: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Forms patches [n, p, c * kernel] and gradients [r, n, p, channels], or the Jacobian for several groups."""
        n, c = recorded.shape[:2]
        dims, groups = len(module.kernel_size), module.groups
        under = patches(recorded, module.kernel_size, module.stride, module.dilation)  # [n, c, positions..., kernel...]
        order = [0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims)]
        numbers = c // groups * torch.Size(module.kernel_size).numel()
        # Positions come last, as in the input, so that copies take whole rows of it, and 1 x 1 kernels take none.
        columns = under.permute(order).reshape(n, groups * numbers, -1)
        g = gradient.flatten(3)  # [r, n, channels, p]
        if groups == 1:
            return columns.transpose(1, 2), g.transpose(2, 3)
        jacobian = torch.einsum(
            "rngmp,ngdp->rngmd", torch.unflatten(g, 2, (groups, -1)), torch.unflatten(columns, 1, (groups, numbers))
        )
        return g.new_empty(n, 1, 0), with_bias(jacobian.flatten(2), g, module.bias)

    def has_bias(self, module: Any) -> bool:
        """Tells whether there is a bias, or a Jacobian, whose forward Gram is all ones."""
        return module.bias is not None or module.groups > 1


RULES = dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), ConvolutionRule())
