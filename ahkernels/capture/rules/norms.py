"""The rule for norms in eval mode, which scale and shift the normalised input.

They have so few parameters that the Jacobian itself is used. With y = w xhat + b, the gradient of w is the sum of
g xhat over the positions that share w, and the gradient of b is the sum of g over them. The Jacobian stands in for the
backward factor, and the forward Gram is all ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class NormRule:
    """The Jacobian of a scale and, where there is one, a shift of the normalised input.

    Args:
        normalise: Computes the normalised input from the module and its input.
        by_channel: Whether the parameters belong to dimension 1 of the input; otherwise, to its last dimensions.
    """

    def __init__(self, normalise: Callable[[Any, Tensor], Tensor], *, by_channel: bool) -> None:
        self.normalise = normalise
        self.by_channel = by_channel

    def parameters(self, module: Any) -> list[str]:
        """Lists weight, and bias where there is one."""
        return ["weight"] if getattr(module, "bias", None) is None else ["weight", "bias"]

    def record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Keeps the normalised input [n, ...]; None if it has no dimension of samples."""
        (x,) = (*args, *kwargs.values())
        parameter_dims = 1 if self.by_channel else module.weight.dim()
        return self.normalise(module, x) if x.dim() > parameter_dims else None

    def factors(self, module: Any, recorded: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Forms an empty forward factor [n, 1, 0] and the Jacobian [r, n, 1, parameters]."""
        n, r, size = recorded.shape[0], gradient.shape[0], module.weight.numel()
        if self.by_channel:
            xhat, g = recorded.reshape(n, size, -1), gradient.reshape(r, n, size, -1)
            jacobian = [(g * xhat).sum(3), g.sum(3)]
        else:
            xhat, g = recorded.reshape(n, -1, size), gradient.reshape(r, n, -1, size)
            jacobian = [(g * xhat).sum(2), g.sum(2)]
        return recorded.new_empty(n, 1, 0), torch.cat(jacobian[: len(self.parameters(module))], 2).unsqueeze(2)

    def has_bias(self, module: Any) -> bool:
        """Returns True always, since the forward Gram of a Jacobian is all ones."""
        return True


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    return functional.layer_norm(x, module.normalized_shape, eps=module.eps)


def _rms_norm(module: nn.RMSNorm, x: Tensor) -> Tensor:
    return functional.rms_norm(x, module.normalized_shape, eps=module.eps)


def _group_norm(module: nn.GroupNorm, x: Tensor) -> Tensor:
    return functional.group_norm(x, module.num_groups, eps=module.eps)


def _batch_norm(module: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    return functional.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)


def _instance_norm(module: nn.modules.instancenorm._InstanceNorm, x: Tensor) -> Tensor:
    if module.training or not module.track_running_stats:
        return functional.instance_norm(x, eps=module.eps)
    return functional.instance_norm(x, module.running_mean, module.running_var, use_input_stats=False, eps=module.eps)


RULES: dict[type[nn.Module], NormRule] = {
    nn.LayerNorm: NormRule(_layer_norm, by_channel=False),
    nn.RMSNorm: NormRule(_rms_norm, by_channel=False),
    nn.GroupNorm: NormRule(_group_norm, by_channel=True),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), NormRule(_batch_norm, by_channel=True)),
    **dict.fromkeys(
        (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), NormRule(_instance_norm, by_channel=True)
    ),
}
