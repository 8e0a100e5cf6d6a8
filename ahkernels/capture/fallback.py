"""Layers without a rule: their Jacobian, from the model as a function of their parameters alone.

Slower than a rule (a backward pass through the model that also forms the gradients of these parameters for every
sample), and right for whatever torch can differentiate: modules nobody wrote a rule for, parameters of a container,
parameters tied between modules, and parametrisations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ahkernels.capture.call import copied_buffers
from ahkernels.capture.guard import quietly_batched

# Of the Jacobians of a chunk of samples.
_CHUNK_BYTES = 64 << 20


def jacobians(model: nn.Module, x: Tensor, layers: Sequence[Sequence[str]], cotangents: Tensor) -> list[Tensor]:
    """The gradients of c f(x) for each cotangent c with respect to each layer's parameters.

    Args:
        model: Its outputs are [n, o].
        x: [n, ...].
        layers: Names of the parameters of each layer.
        cotangents: [r, o].

    Returns:
        For each layer [r, n, parameters], where those that f does not depend on have zeros.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    own = {name: parameters[name] for names in layers for name in names}
    rest = {name: parameter for name, parameter in parameters.items() if name not in own}
    numbers = sum(parameter.numel() for parameter in own.values())
    chunk = max(1, _CHUNK_BYTES // (len(cotangents) * max(1, numbers) * cotangents.dtype.itemsize))

    def of_sample(sample: Tensor) -> dict[str, Tensor]:
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
                found = torch.func.vmap(of_sample)(samples)  # [n, r, *shape]
            for name, gradient in found.items():
                if gradient.shape != (len(samples), len(cotangents), *own[name].shape):
                    raise RuntimeError(f"the gradients of {name} came in shape {list(gradient.shape)}")
        except RuntimeError:  # an operation of the model has no batched form, or a wrong one
            of_samples = [_one_by_one(model, own, rest, sample, cotangents) for sample in samples]
            found = {name: torch.stack([of_one[name] for of_one in of_samples]) for name in own}
        for name, gradient in found.items():
            parts[name].append(gradient.detach().flatten(2))
    whole = {name: torch.cat(chunks).transpose(0, 1) for name, chunks in parts.items()}
    return [torch.cat([whole[name] for name in names], 2) for names in layers]


def _one_by_one(
    model: nn.Module, own: dict[str, Tensor], rest: dict[str, Tensor], sample: Tensor, cotangents: Tensor
) -> dict[str, Tensor]:
    """The same for one sample by plain autograd: [r, *shape]."""
    leaves = {name: parameter.clone().requires_grad_() for name, parameter in own.items()}
    state = {**rest, **leaves, **copied_buffers(model)}
    output = torch.func.functional_call(model, state, (sample.unsqueeze(0),))[0]
    rows = [
        torch.autograd.grad(output, list(leaves.values()), c, retain_graph=True, materialize_grads=True)
        for c in cotangents
    ]
    return {name: torch.stack(column) for name, column in zip(leaves, zip(*rows, strict=True), strict=True)}
