"""The rule for any module whose parameters are all its own: its Jacobian, from calls of this module alone.

The gradients at the output of a recorded call are taken back to the parameters by batched gradients of the module at
the recorded inputs. The rest of the model is not run again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ahkernels.capture.guard import quietly_batched

# Numbers of outputs and gradients that are formed at once.
_NUMBERS_AT_ONCE = 1 << 23


class OwnJacobianRule:
    """The Jacobian of a module that can be called for a single sample, whatever it computes."""

    def parameters(self, module: nn.Module) -> list[str]:
        """Lists all parameters of the module and of modules in it."""
        return [name for name, _ in module.named_parameters()]

    def record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """Keeps all arguments and how they were given; None unless the first is a tensor."""
        arguments, given = tree_flatten((args, kwargs))
        return (*arguments, given) if arguments and isinstance(arguments[0], Tensor) else None

    def factors(self, module: nn.Module, recorded: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Forms an empty forward factor [n, 1, 0] and the Jacobian [r, n, 1, parameters].

        Arguments whose first dimension is n are those of single samples, and all others are the same for every sample.

        Raises:
            RuntimeError: If an operation of the module cannot be batched over samples and cotangents.
        """
        *arguments, given = recorded
        r, n = gradient.shape[:2]
        alone = _Forward(module)
        parameters = {name: parameter.detach() for name, parameter in alone.named_parameters()}
        of_samples = {
            place: one
            for place, one in enumerate(arguments)
            if isinstance(one, Tensor) and one.dim() > 0 and len(one) == n
        }

        def jacobian(sample: dict[int, Tensor], cotangents: Tensor) -> Tensor:
            of_sample = [sample[place].unsqueeze(0) if place in sample else one for place, one in enumerate(arguments)]
            args, kwargs = tree_unflatten(of_sample, given)

            def f(values: dict[str, Tensor]) -> Tensor:
                buffers = {name: buffer.clone() for name, buffer in alone.named_buffers()}  # which a call may change
                outputs = torch.func.functional_call(alone, {**values, **buffers}, args, kwargs)
                output: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
                return output[0]

            gradients = torch.func.vmap(torch.func.vjp(f, parameters)[1])(cotangents)[0]
            return torch.cat([one.flatten(1) for one in gradients.values()], 1)

        numbers = sum(parameter.numel() for parameter in parameters.values())
        found = gradient.new_empty(r, n, 1, numbers)
        at_once = max(1, _NUMBERS_AT_ONCE // (r * max(1, gradient[0, 0].numel(), numbers)))
        with quietly_batched:
            for begin in range(0, n, at_once):
                part = slice(begin, begin + at_once)
                samples = {place: one[part] for place, one in of_samples.items()}
                found[:, part, 0] = torch.func.vmap(jacobian, (0, 1), 1)(samples, gradient[:, part])
        return gradient.new_empty(n, 1, 0), found

    def has_bias(self, module: nn.Module) -> bool:
        """Returns True always, since the forward Gram of a Jacobian is all ones."""
        return True


class _Forward(nn.Module):
    """The forward of a module without its hooks: inputs were recorded after them, and gradients before them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


OWN_JACOBIAN = OwnJacobianRule()
