"""The backward pass of a recorded call: the gradients at the uses of layers, and what their rules make of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ahkernels.capture.call import Call
from ahkernels.capture.guard import quietly_batched
from ahkernels.capture.rules.in_graph import GraphRule, jacobian_of_uses
from ahkernels.capture.selection import Layer


def gradients_of(call: Call, layers: Sequence[Layer], cotangents: Tensor) -> dict[str, list[Tensor | None]]:
    """Computes the gradients [r, ...] at each edge of the uses of each layer; None where a use does not reach f."""
    names = [layer.name for layer in layers if layer.name in call.uses]
    edges = [edge for name in names for edge in call.uses[name].edges]
    if not edges:
        return {}
    batched = cotangents[:, None, :].expand(-1, call.output.shape[0], -1)  # [r, n, o]
    if len(batched) == 1:
        found: Sequence[Tensor | None] = torch.autograd.grad(
            call.output, edges, batched[0], retain_graph=True, allow_unused=True
        )
        gradients = [None if g is None else g.unsqueeze(0) for g in found]
    else:
        gradients = list(_batched_gradients(call.output, edges, batched))
    result: dict[str, list[Tensor | None]] = {}
    for name in names:
        uses = len(call.uses[name].edges)
        result[name], gradients = gradients[:uses], gradients[uses:]
    return result


def _batched_gradients(
    output: Tensor, edges: Sequence[torch.autograd.graph.GradientEdge], batched: Tensor
) -> Sequence[Tensor | None]:
    try:
        with quietly_batched:
            return torch.autograd.grad(
                output, edges, batched, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
    except RuntimeError:
        # An operation of the model cannot be batched over cotangents.
        one_by_one: list[tuple[Tensor | None, ...]] = [
            torch.autograd.grad(output, edges, cotangent, retain_graph=True, allow_unused=True) for cotangent in batched
        ]
        by_edge = zip(*one_by_one, strict=True)
        return [None if parts[0] is None else torch.stack([g for g in parts if g is not None]) for parts in by_edge]


def factors_of(call: Call, layer: Layer, gradients: Sequence[Tensor | None] | None, r: int) -> tuple[Tensor, Tensor]:
    """Forms the factors of a layer from one call: a [n, s, d] and g [r, n, s, m], or its Jacobian with s = 1."""
    n, uses, rule = call.output.shape[0], call.uses.get(layer.name), layer.rule
    assert rule is not None
    zeros = call.output.detach().new_zeros(1)
    if uses is None or not uses.recorded:
        return zeros.expand(n, 1, 0), zeros.expand(r, n, 1, 0)
    found = [None] * len(uses.recorded) if gradients is None else gradients
    at_uses = [
        uses.no_gradient(use, r) if one is None else one.detach().reshape(len(one), *shape)
        for use, (one, shape) in enumerate(zip(found, uses.output_shapes, strict=True))
    ]
    if isinstance(rule, GraphRule):
        jacobian = jacobian_of_uses(uses.recorded, at_uses)
        return jacobian.new_empty(n, 1, 0), jacobian.unsqueeze(2)
    forward, backward = [], []
    for recorded, gradient in zip(uses.recorded, at_uses, strict=True):
        a, g = unfolded(*rule.factors(call.modules[layer.name], recorded, gradient), n)
        if a.is_floating_point() and a.dtype != g.dtype:  # under autocast
            dtype = torch.promote_types(a.dtype, g.dtype)
            a, g = a.to(dtype), g.to(dtype)
        forward.append(a)
        backward.append(g)
    if len(forward) == 1:
        return forward[0], backward[0]
    if forward[0].shape[2] == 0:  # Jacobians
        return forward[0], functools.reduce(torch.add, backward)
    return torch.cat(forward, -2), torch.cat(backward, -2)


def unfolded(a: Tensor, g: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The factors of n samples where a use has several rows for each of them, one after the other, such as windows.

    Args:
        a: The forward factor [n k, p, d], or an empty one.
        g: The backward factor [r, n k, p, m], or a Jacobian [r, n k, 1, parameters].
        n: The number of samples.

    Returns:
        a [n, k p, d] and g [r, n, k p, m], or the Jacobian summed over rows.
    """
    if a.dim() != 3 or g.dim() != 4 or len(a) == n:
        return a, g
    if a.shape[2] == 0:
        return a[:n], torch.unflatten(g, 1, (n, -1)).sum(2)
    return a.reshape(n, -1, a.shape[2]), g.reshape(g.shape[0], n, -1, g.shape[3])
