"""The rule for transposed convolutions: each input position adds to the patch of the output under the kernel.

So the gradient of the weight is a sum over input positions: the input there, times the patch of the output's gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ahkernels.capture.rules.convolution import patches, with_bias


class TransposedConvolutionRule:
    """At each input position, a is the input and g the patch of the gradient at the output.

    A bias adds one position, whose a is 1 in an entry of its own and whose g is the gradient summed over the output.
    """

    def parameters(self, module: Any) -> list[str]:
        """Lists weight, and bias where there is one."""
        return ["weight"] if module.bias is None else ["weight", "bias"]

    def record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Keeps the input [n, c, *sizes]; None if it has no dimension of samples."""
        x = args[0] if args else kwargs["input"]
        return x if x.dim() == len(module.kernel_size) + 2 else None

    def factors(self, module: Any, recorded: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Forms a [n, p + b, c + b] and g [r, n, p + b, channels * kernel], or the Jacobian for several groups.

        Here p counts the positions of the input, and b is 1 with a bias and 0 without.
        """
        n, r, groups = len(recorded), len(gradient), module.groups
        g = gradient.flatten(3)  # [r, n, channels, positions of the output]
        under = self._under(module, recorded.shape[2:], gradient)  # [r, n, channels, kernel, p]
        x = recorded.flatten(2)  # [n, c, p]
        if groups > 1:
            jacobian = torch.einsum(
                "ngcp,rngmkp->rngcmk", torch.unflatten(x, 1, (groups, -1)), torch.unflatten(under, 2, (groups, -1))
            )
            return x.new_empty(n, 1, 0), with_bias(jacobian.flatten(2), g, module.bias)
        a, b = x.transpose(1, 2), under.flatten(2, 3).transpose(2, 3)
        if module.bias is None:
            return a, b
        a = functional.pad(a, (0, 1, 0, 1))
        a[:, -1, -1] = 1
        b = functional.pad(b, (0, 0, 0, 1))
        b[:, :, -1, : g.shape[2]] = g.sum(3)
        return a, b.view(r, n, -1, b.shape[3])

    def _under(self, module: Any, sizes: torch.Size, gradient: Tensor) -> Tensor:
        """Takes the patch of the output's gradient under the kernel at each input position.

        Args:
            module: The transposed convolution.
            sizes: The sizes of its input.
            gradient: [r, n, channels, *output sizes].

        Returns:
            [r, n, channels, kernel, p].
        """
        dims = len(sizes)
        padding: list[int] = []
        for dim in reversed(range(dims)):
            before = module.padding[dim]
            reach = module.stride[dim] * (sizes[dim] - 1) + module.dilation[dim] * (module.kernel_size[dim] - 1) + 1
            padding += [before, reach - before - gradient.shape[3 + dim]]  # negative: nothing reaches the output's end
        padded = functional.pad(gradient, padding)
        under = patches(padded, module.kernel_size, module.stride, module.dilation)  # [r, n, m, sizes..., kernel...]
        return under.flatten(3 + dims).flatten(3, 2 + dims).transpose(3, 4)

    def has_bias(self, module: Any) -> bool:
        """Returns True for a Jacobian alone, whose forward Gram is all ones; the module's own bias is a position."""
        return bool(module.groups > 1)


RULES = dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), TransposedConvolutionRule())
