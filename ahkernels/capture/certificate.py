"""The certificate: what was captured of a layer is held against autograd in the very same call of the model.

For random weights v on the outputs, the squared norm of J^T v, with the Jacobian J of a layer, is v^T K v from the
captured factors, and it is the squared norm of autograd's own gradient of <v, f> by the layer's parameters. A fault in
what was captured changes one and not the other: parameters that act in another way than the layer's rule knows, or a
forward that is not the module's own. One v is centered for each output, since the mean gradient of a near-constant
network would hide everything else; another one is not, since centering hides constants. Both are zero on half of the
samples. Their gradients must be zero at the output of every layer, or else the rows of a factor belong to other samples
than the rows of the output.

Two evaluations of the model find chance and samples that act on one another: one of a few samples, and one of half of
them from another state of the random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
# How far two values may be apart, relative to their size.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
# The rounding of a sum, in units of that of the dtype for the sum of the sizes of its addends.
_ROUNDING = 4
_ANOTHER_SCALE = 1.37  # that of v where autograd's own rounding is looked for; no power of two, which would show none


@dataclass(frozen=True)
class Reference:
    """Autograd's side of the certificate for one call.

    Attributes:
        weights: The parts of v for each cotangent, [n, r], of two v.
        squares: For each v, the squared norm of the gradient of <v, f> by the parameters of each layer, by name.
        mixed: The layers at whose output the gradients of samples without weight are not zero.
        coarsest: The dtype with the greatest rounding among outputs and parameters.
        noise: For a layer, how far autograd's own squared norms are apart when v is multiplied by a number.
    """

    weights: list[Tensor]
    squares: list[dict[str, float]]
    mixed: set[str]
    coarsest: torch.dtype
    noise: Callable[[Layer], list[float]]


def reference(call: Call, layers: Sequence[Layer], cotangents: Tensor) -> Reference:
    """Computes autograd's side of the certificate; the graph of the call is kept.

    Args:
        call: A call of the model.
        layers: Layers that it recorded.
        cotangents: The cotangents [r, o] of the capture.
    """
    n = len(call.output)
    generator = torch.Generator().manual_seed(n)
    silent = torch.randperm(n, generator=generator)[: n // 2]
    weights = [_weights(n, len(cotangents), silent, centered, generator).to(call.output) for centered in (True, False)]
    names = [layer.name for layer in layers if call.uses.get(layer.name) and call.uses[layer.name].edges]
    edges = [edge for name in names for edge in call.uses[name].edges]
    parameters = [get_gradient_edge(call.leaves[parameter]) for layer in layers for parameter in layer.parameters]
    mixed: set[str] = set()
    squares = []
    for w in weights:
        v = w @ cotangents
        found = list(torch.autograd.grad(call.output, edges + parameters, v, retain_graph=True, allow_unused=True))
        for name in names:
            for _ in call.uses[name].edges:
                gradient = found.pop(0)
                if gradient is not None and bool(gradient[silent.to(gradient.device)].count_nonzero()):
                    mixed.add(name)
        of_layers = {}
        for layer in layers:
            gradients = [found.pop(0) for _ in layer.parameters]
            of_layers[layer.name] = sum(_norm(g) ** 2 for g in gradients if g is not None)
        squares.append(of_layers)

    def noise(layer: Layer) -> list[float]:
        by = [get_gradient_edge(call.leaves[parameter]) for parameter in layer.parameters]
        found = []
        for w, of_layers in zip(weights, squares, strict=True):
            v = _ANOTHER_SCALE * w @ cotangents
            gradients = torch.autograd.grad(call.output, by, v, retain_graph=True, allow_unused=True)
            square = sum(_norm(g) ** 2 for g in gradients if g is not None)
            found.append(abs(square / _ANOTHER_SCALE**2 - of_layers[layer.name]))
        return found

    dtypes = {call.output.dtype, *(leaf.dtype for leaf in call.leaves.values())}
    return Reference(weights, squares, mixed, max(dtypes, key=lambda dtype: torch.finfo(dtype).eps), noise)


def _weights(n: int, r: int, silent: Tensor, centered: bool, generator: torch.Generator) -> Tensor:
    """Random weights [n, r], zero on the silent samples, and where it is asked for centered over the others."""
    weights = torch.randn(n, r, generator=generator, dtype=torch.float64)
    active = torch.ones(n, 1, dtype=torch.float64)
    active[silent] = 0
    if centered and n > 2:  # of a single active sample, nothing would be left
        weights -= (weights * active).sum(0) / active.sum()
    return weights * active


def disagreeing(
    of_call: Reference, kept: Mapping[str, tuple[Tensor, Tensor]], layers: Sequence[tuple[Layer, bool]]
) -> set[str]:
    """The layers whose factors do not agree with autograd, or belong to other samples.

    Args:
        of_call: Autograd's side; the graph of its call must still be there.
        kept: The factors a [n, s, d] and g [r, n, s, m] of each layer, or empty ones and its Jacobian [r, n, 1, P].
        layers: The layers, each with whether there is a bias.
    """
    return of_call.mixed | {
        layer.name for layer, bias in layers if not _agrees(of_call, layer, *kept[layer.name], bias)
    }


def _agrees(of_call: Reference, layer: Layer, a: Tensor, g: Tensor, bias: bool) -> bool:
    """Whether factors agree with autograd. Those that are not finite do: the measurement says so by itself."""
    inputs = a.flatten(0, 1)
    sizes = inputs.norm(dim=1)
    eps, tolerance = _ROUNDING * torch.finfo(of_call.coarsest).eps, _TOLERANCE[of_call.coarsest]
    differences = []
    for weights, squares in zip(of_call.weights, of_call.squares, strict=True):
        expected = squares[layer.name]
        h = torch.einsum("rnsm,nr->nsm", g, weights.to(g.dtype)).flatten(0, 1)
        of_weight, of_bias = _norm(h.T @ inputs), bias * _norm(h.sum(0))
        square = of_weight**2 + of_bias**2
        if not math.isfinite(square) or not math.isfinite(expected):
            return True
        # The rounding of a sum is that of its addends, which may cancel.
        lengths = h.norm(dim=1)
        error_of_weight, error_of_bias = eps * float(lengths @ sizes), bias * eps * float(lengths.sum())
        rounding = 2 * (of_weight * error_of_weight + of_bias * error_of_bias)
        rounding += error_of_weight**2 + error_of_bias**2
        differences.append(max(0.0, abs(square - expected) - tolerance * expected - rounding))
    if not any(differences):
        return True
    # Where gradients cancel on their way through the network, autograd's own rounding is larger than that of the sums.
    noise = of_call.noise(layer)
    return all(difference <= 10 * own for difference, own in zip(differences, noise, strict=True))


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


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
    return float((found.double() - again.double()).abs().max()) <= _TOLERANCE[found.dtype] * scale
