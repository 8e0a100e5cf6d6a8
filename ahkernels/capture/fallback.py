"""The fallback for layers without a rule: their Jacobian, from the model as a function of their parameters alone.

It is right for whatever torch can differentiate: modules without a rule, parameters of a container, parameters that are
tied between modules, and parametrisations. It is slower than a rule, since a backward pass through the model also forms
the gradients of these parameters for every sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ahkernels.capture.call import copied_buffers
from ahkernels.capture.guard import quietly_batched

# How large the Jacobians of one chunk of samples may be.
_CHUNK_BYTES = 64 << 20


def jacobians(model: nn.Module, x: Tensor, layers: Sequence[Sequence[str]], cotangents: Tensor) -> list[Tensor]:
    """Computes the gradient of <c, f(x)> by the parameters of each layer, for each cotangent c and each sample.

    Args:
        model: The network, with f(x) of shape [n, o].
        x: Its inputs [n, ...].
        layers: The names of the parameters of each layer.
        cotangents: The cotangents [r, o].

    Returns:
        For each layer its Jacobian [r, n, parameters], with zeros for parameters that f does not depend on.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    own = {name: parameters[name] for names in layers for name in names}
    rest = {name: parameter for name, parameter in parameters.items() if name not in own}
    size = sum(parameter.numel() for parameter in own.values())
    chunk = max(1, _CHUNK_BYTES // (len(cotangents) * max(1, size) * cotangents.dtype.itemsize))

    def gradients_of(sample: Tensor) -> dict[str, Tensor]:
        def f(values: dict[str, Tensor]) -> Tensor:
            state = {**rest, **values, **copied_buffers(model)}
            output: Tensor = torch.func.functional_call(model, state, (sample.unsqueeze(0),))
            return output[0]

        pull = torch.func.vjp(f, own)[1]
        if len(cotangents) == 1:
            return {name: gradient.unsqueeze(0) for name, gradient in pull(cotangents[0])[0].items()}
        (gradients,) = torch.func.vmap(pull)(cotangents)
        found: dict[str, Tensor] = gradients
        return found

    parts: dict[str, list[Tensor]] = {name: [] for name in own}
    for begin in range(0, len(x), chunk):
        samples = x[begin : begin + chunk].detach()
        try:
            with quietly_batched():
                found = torch.func.vmap(gradients_of)(samples)  # [n, r, *shape]
            for name, gradient in found.items():
                if gradient.shape != (len(samples), len(cotangents), *own[name].shape):
                    raise RuntimeError(f"the gradients of {name} came in shape {list(gradient.shape)}")
        except RuntimeError:  # an operation of the model has no batched form, or a wrong one
            rows = [_gradients_of_sample(model, own, rest, sample, cotangents) for sample in samples]
            found = {name: torch.stack([row[name] for row in rows]) for name in own}
        for name, gradient in found.items():
            parts[name].append(gradient.detach().flatten(2))
    whole = {name: torch.cat(chunks).transpose(0, 1) for name, chunks in parts.items()}
    return [torch.cat([whole[name] for name in names], 2) for names in layers]


def _gradients_of_sample(
    model: nn.Module, own: dict[str, Tensor], rest: dict[str, Tensor], sample: Tensor, cotangents: Tensor
) -> dict[str, Tensor]:
    """Computes the gradients [r, *shape] of one sample by plain autograd, one cotangent after the other."""
    leaves = {name: parameter.clone().requires_grad_() for name, parameter in own.items()}
    state = {**rest, **leaves, **copied_buffers(model)}
    output = torch.func.functional_call(model, state, (sample.unsqueeze(0),))[0]
    rows = [
        torch.autograd.grad(output, list(leaves.values()), c, retain_graph=True, materialize_grads=True)
        for c in cotangents
    ]
    return {name: torch.stack(column) for name, column in zip(leaves, zip(*rows, strict=True), strict=True)}
