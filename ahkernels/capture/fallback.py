"""The fallback for layers without a rule: their Jacobian, from the model as a function of their parameters alone.

It is right for whatever torch can differentiate: modules without a rule, parameters of a container, parameters that are
tied between modules, and parametrisations. It is slower than a rule, since a backward pass through the model also forms
the gradients of these parameters for every sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ahkernels.capture.guard import quietly_batched
from ahkernels.capture.twin import Twin

# How large the Jacobians of one chunk of samples may be.
_CHUNK_BYTES = 64 << 20
# How far batched gradients may be from those of plain autograd, relative to the norm of a parameter's gradients.
_AGREEMENT = {torch.float64: 1e-8, torch.float32: 1e-2, torch.float16: 0.1, torch.bfloat16: 0.1}


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
    twin = Twin(model).model  # its parameters may be swapped
    parameters = {name: parameter.detach() for name, parameter in twin.named_parameters()}
    own = {name: parameters[name] for names in layers for name in names}
    rest = {name: parameter for name, parameter in parameters.items() if name not in own}
    size = sum(parameter.numel() for parameter in own.values())
    chunk = max(1, _CHUNK_BYTES // (len(cotangents) * max(1, size) * cotangents.dtype.itemsize))

    def gradients_of(sample: Tensor) -> dict[str, Tensor]:
        def f(values: dict[str, Tensor]) -> Tensor:
            state = {**rest, **values, **_copied_buffers(twin)}
            output: Tensor = torch.func.functional_call(twin, state, (sample.unsqueeze(0),))
            return output[0]

        pull = torch.func.vjp(f, own)[1]
        if len(cotangents) == 1:
            return {name: gradient.unsqueeze(0) for name, gradient in pull(cotangents[0])[0].items()}
        (gradients,) = torch.func.vmap(pull)(cotangents)
        found: dict[str, Tensor] = gradients
        return found

    first = _gradients_of_sample(model, list(own), x[0].detach(), cotangents)
    parts: dict[str, list[Tensor]] = {name: [] for name in own}
    batched = True
    for begin in range(0, len(x), chunk):
        samples = x[begin : begin + chunk].detach()
        try:
            if batched:
                with quietly_batched():
                    found = torch.func.vmap(gradients_of)(samples)  # [n, r, *shape]
                if begin == 0:
                    _require_agreement(first, found)
        except RuntimeError:  # an operation of the model has no batched form, or a wrong one
            batched = False  # for all samples that follow, too
        if not batched:
            rows = [_gradients_of_sample(model, list(own), sample, cotangents) for sample in samples]
            found = {name: torch.stack([row[name] for row in rows]) for name in own}
        for name, gradient in found.items():
            parts[name].append(gradient.detach().flatten(2))
    whole = {name: torch.cat(chunks).transpose(0, 1) for name, chunks in parts.items()}
    return [torch.cat([whole[name] for name in names], 2) for names in layers]


def _gradients_of_sample(
    model: nn.Module, names: Sequence[str], sample: Tensor, cotangents: Tensor
) -> dict[str, Tensor]:
    """Computes the gradients [r, *shape] of one sample by plain autograd, one cotangent after the other.

    They are those by the very parameters that a twin of the model has, whatever way the model reaches them.
    """
    twin = Twin(model).model
    parameters = dict(twin.named_parameters())
    output = twin(sample.unsqueeze(0))[0]
    by = [parameters[name] for name in names]
    rows = [torch.autograd.grad(output, by, c, retain_graph=True, materialize_grads=True) for c in cotangents]
    columns = zip(*rows, strict=True)
    return {name: torch.stack([g.to_dense() for g in column]) for name, column in zip(names, columns, strict=True)}


def _require_agreement(first: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raises RuntimeError unless batched gradients [n, r, *shape] of the first sample are those of plain autograd."""
    for name, expected in first.items():
        got = found[name]
        if got.shape[1:] != expected.shape:
            raise RuntimeError(f"the gradients of {name} came in shape {list(got.shape)}")
        if not bool((got[0] - expected).norm() <= _AGREEMENT[expected.dtype] * expected.norm()):
            raise RuntimeError(f"the gradients of {name} are not those of plain autograd")


def _copied_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies the buffers of a model, such as running statistics, so that a call may change them."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}
