"""The certificate: what was captured of a layer is held against autograd in the very same call of the model.

For random weights v on the outputs, the squared norm of J^T v, with the Jacobian J of a layer, is v^T K v from the
captured factors, and it is the squared norm of autograd's own gradient of <v, f> by the layer's parameters. A fault in
what was captured changes one and not the other: parameters that act in another way than the layer's rule knows, or a
forward that is not the module's own. v is centered for each output, since the mean gradient of a near-constant network
would hide everything else. It is zero on half of the samples. Their gradients must be zero at the output of every
layer, or else the rows of a factor belong to other samples than the rows of the output.

Two evaluations of the model find chance and samples that act on one another: one of a few samples, and one of half of
them from another state of the random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ahkernels.capture.call import Call
from ahkernels.capture.guard import unchanged
from ahkernels.capture.selection import Layer
from ahkernels.capture.twin import Twin

# Samples that are evaluated twice.
_EVALUATED = 16
# How far two values may be apart, relative to their size. Within one call they differ by rounding alone; outputs of
# different batches may differ by more.
_SAME_CALL = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
_OTHER_BATCH = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
# The rounding of a squared norm, in units of that of the dtype for each addend.
_ROUNDING = 16


@dataclass(frozen=True)
class Reference:
    """Autograd's side of the certificate for one call.

    Attributes:
        weights: The part of v for each cotangent, [n, r].
        squares: The squared norm of the gradient of <v, f> by the parameters of each layer, by name.
        mixed: The layers at whose output the gradients of samples without weight are not zero.
        coarsest: The dtype with the greatest rounding among outputs and parameters.
    """

    weights: Tensor
    squares: dict[str, float]
    mixed: set[str]
    coarsest: torch.dtype


def reference(call: Call, layers: Sequence[Layer], cotangents: Tensor) -> Reference:
    """Computes autograd's side of the certificate; the graph of the call is kept.

    Args:
        call: A call of the model.
        layers: Layers that it recorded.
        cotangents: The cotangents [r, o] of the capture.
    """
    n, r = len(call.output), len(cotangents)
    generator = torch.Generator().manual_seed(n)
    silent = torch.randperm(n, generator=generator)[: n // 2]
    weights = torch.randn(n, r, generator=generator, dtype=torch.float64)
    weights[silent] = 0
    if n - len(silent) > 1:
        weights -= weights.sum(0) / (n - len(silent))
        weights[silent] = 0
    weights = weights.to(call.output)
    names = [layer.name for layer in layers if call.uses.get(layer.name) and call.uses[layer.name].edges]
    edges = [edge for name in names for edge in call.uses[name].edges]
    parameters = [get_gradient_edge(call.leaves[parameter]) for layer in layers for parameter in layer.parameters]
    v = weights @ cotangents
    found = list(torch.autograd.grad(call.output, edges + parameters, v, retain_graph=True, allow_unused=True))
    mixed = set()
    for name in names:
        for _ in call.uses[name].edges:
            gradient = found.pop(0)
            if gradient is not None and bool(gradient[silent.to(gradient.device)].count_nonzero()):
                mixed.add(name)
    squares = {}
    for layer in layers:
        gradients = [found.pop(0) for _ in layer.parameters]
        squares[layer.name] = sum(float(g.double().square().sum()) for g in gradients if g is not None)
    dtypes = {call.output.dtype, *(leaf.dtype for leaf in call.leaves.values())}
    return Reference(weights, squares, mixed, max(dtypes, key=lambda dtype: torch.finfo(dtype).eps))


def agrees(of_call: Reference, name: str, a: Tensor, g: Tensor, *, bias: bool) -> bool:
    """Whether the factors a [n, s, d] and g [r, n, s, m] of a layer, or its Jacobian, agree with autograd.

    Factors that are not finite agree: the measurement says so by itself.
    """
    h = torch.einsum("rnsm,nr->nsm", g, of_call.weights.to(g.dtype)).flatten(0, 1)
    inputs = a.flatten(0, 1)
    square = float((h.T @ inputs).double().square().sum())
    sizes = inputs.double().square().sum(1)
    if bias:
        square += float(h.sum(0).double().square().sum())
        sizes = sizes + 1
    addends = float((h.double().square().sum(1) * sizes).sum())  # each position by itself
    expected = of_call.squares[name]
    if not math.isfinite(square) or not math.isfinite(expected):
        return True
    rounding = _ROUNDING * torch.finfo(of_call.coarsest).eps * len(h) * addends
    return abs(square - expected) <= _SAME_CALL[of_call.coarsest] * expected + rounding


def require_determined(model: nn.Module, x: Tensor) -> None:
    """Checks that outputs depend on their own sample alone, and not on chance.

    Args:
        model: The network.
        x: Its inputs [n, ...].

    Raises:
        ValueError: If they do not; the message says which it is.
    """
    few = x[:_EVALUATED].detach()
    half = torch.arange(0, len(few), 2, device=x.device)
    with unchanged(x):
        found, again = _outputs(model, few), _outputs(model, few[half])
        if not _comparable(found, again, len(few), len(half)) or _same(found[half], again):
            return
        once_more = _outputs(model, few)
    if not _same(found, once_more):
        raise ValueError(
            "model: expected a deterministic network, got outputs that differ between two calls with the same samples; "
            "call model.eval() first, and take chance (such as dropout) out of forward"
        )
    raise ValueError(
        "model: expected outputs that depend on their own sample alone, got others when only half of the samples are "
        "given: samples act on one another, as in attention across the first dimension or a norm over the batch"
    )


def _outputs(model: nn.Module, x: Tensor) -> Any:
    found = Twin(model).model(x)  # with gradients, which some models need on the way
    return found.detach() if isinstance(found, Tensor) else found


def _comparable(found: object, again: object, n: int, half: int) -> bool:
    """Whether both are outputs [n, o]; what they are otherwise is for the capture to refuse."""
    if not isinstance(found, Tensor) or not isinstance(again, Tensor) or not found.is_floating_point():
        return False
    return found.dim() == again.dim() == 2 and len(found) == n and again.shape == (half, found.shape[1])


def _same(found: Tensor, again: Tensor) -> bool:
    if not bool(torch.isfinite(found).all()):
        return True  # the measurement says so by itself
    scale = float(found.double().abs().max())
    return float((found.double() - again.double()).abs().max()) <= _OTHER_BATCH[found.dtype] * scale


def disagreeing(of_call: Reference, kept: Mapping[str, tuple[Tensor, Tensor]], bias: Mapping[str, bool]) -> set[str]:
    """The layers whose factors [n, s, d] and [r, n, s, m] do not agree with autograd, or belong to other samples."""
    return of_call.mixed | {name for name, (a, g) in kept.items() if not agrees(of_call, name, a, g, bias=bias[name])}
