"""The kernel of a tied table, which is both an embedding and the weight of a linear layer.

Its gradient is that of the embedding, in the rows of the words, and that of the linear layer. So K is the sum of the
kernels of both uses, each from factors, and of the products of one with the other: with gradients g at a word w, inputs
h of the linear layer and gradients g' at its outputs these are <g, h> g'[w], since the linear layer has the gradient
g'[w] h in the row of the word. No row of the table is formed. What is kept is a root of K (see
`ahkernels.capture.root`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ahkernels.capture.backward import factors_of, gradients_of
from ahkernels.capture.blocks import add_kernel
from ahkernels.capture.call import Call, call_model
from ahkernels.capture.certify import Reference, compare
from ahkernels.capture.kept import one_hot
from ahkernels.capture.plan import CapturePlan, PlannedLayer
from ahkernels.capture.root import square_root
from ahkernels.capture.route import Shape, choose_route
from ahkernels.capture.rules.embedding import EmbeddingRule
from ahkernels.capture.rules.linear import LinearRule
from ahkernels.capture.selection import Layer
from ahkernels.capture.tied import uses_of_table
from ahkernels.factors import LayerFactors


def root_of_table(plan: CapturePlan, layer: PlannedLayer) -> Tensor | None:
    """A square root [r, n, n r] of the kernel of a tied table; None where its uses cannot be told or held.

    The uses may be others than those that are known, so that the root is held against autograd in every call, as in a
    certificate.

    Args:
        plan: The plan.
        layer: The layer of the table.
    """
    references: list[tuple[slice, Reference]] = []
    factors = _factors(plan, layer, references)
    if factors is None:
        return None
    n, r = len(plan.x), plan.outputs.rows
    kernel = torch.zeros(n * r, n * r, dtype=torch.float64, device=plan.x.device)
    dtype = factors.at_words.dtype
    _add(plan, kernel, one_hot(factors.words, dtype, torch.unique(factors.words)), factors.at_words)
    _add(plan, kernel, factors.inputs, factors.at_outputs)
    _add_products(kernel.view(n, r, n, r), factors)
    found = square_root(kernel, dtype).view(n, r, n * r).permute(1, 0, 2)
    for samples, reference in references:
        of_chunk = found[:, samples, None]
        (comparisons,) = compare(reference, [(layer, of_chunk.new_zeros(1).expand(of_chunk.shape[1], 1, 0), of_chunk)])
        if any(one.beyond > 0 for one in comparisons):
            return None
    return found


@dataclass(frozen=True)
class _Factors:
    """The factors of both uses, for all samples.

    Attributes:
        words: [n, p, 1], -1 for none.
        at_words: The gradients at the words, [n, p, r, d].
        inputs: The inputs of the linear layer, [n, q, d], where any gradient at its outputs is not zero.
        at_outputs: The gradients at its outputs, [n, q, r, c]: those where any gradient is not zero.
        columns: Which these c rows of the table are, in order.
    """

    words: Tensor
    at_words: Tensor
    inputs: Tensor
    at_outputs: Tensor
    columns: Tensor


def _factors(plan: CapturePlan, layer: PlannedLayer, references: list[tuple[slice, Reference]]) -> _Factors | None:
    """The factors of all samples, a chunk at a time; adds autograd's side of each chunk to references."""
    uses, chunks = uses_of_table(plan.model, layer.parameters), list[_Factors]()
    step = max(1, plan.memory.work // max(1, (plan.outputs.rows + 2) * plan.trace.bytes_per_sample))
    held = 0
    for begin in range(0, len(plan.x), step):
        samples = slice(begin, min(len(plan.x), begin + step))
        with plan.other_random_numbers():
            call = call_model(plan.forward, plan.twin(), plan.x[samples], uses)
        reference = Reference(call, [layer], set(), plan.cotangents, plan.memory.work)
        reference.release()
        references.append((samples, reference))
        found = _of_call(plan, call, uses)
        if found is None:
            return None
        held += found.at_words.nbytes + found.at_outputs.nbytes
        if held > plan.memory.kept:
            return None
        chunks.append(found)
    columns = torch.unique(torch.cat([one.columns for one in chunks]))
    p, q = (max(getattr(one, name).shape[1] for one in chunks) for name in ("words", "inputs"))
    wide = []
    for one in chunks:
        at_outputs = one.at_outputs.new_zeros(*one.at_outputs.shape[:3], len(columns))
        at_outputs[..., torch.searchsorted(columns, one.columns)] = one.at_outputs
        wide.append(at_outputs)
    return _Factors(
        torch.cat([_longer(one.words, p, -1) for one in chunks]),
        torch.cat([_longer(one.at_words, p, 0) for one in chunks]),
        torch.cat([_longer(one.inputs, q, 0) for one in chunks]),
        torch.cat([_longer(one, q, 0) for one in wide]),
        columns,
    )


def _of_call(plan: CapturePlan, call: Call, uses: Sequence[Layer]) -> _Factors | None:
    """The factors of the samples of a call; None where a use has not been recorded."""
    gradients = gradients_of(call, uses, plan.cotangents)
    found: dict[type, list[tuple[Tensor, Tensor]]] = {EmbeddingRule: [], LinearRule: []}
    for layer in uses:
        if layer.name not in call.uses:
            continue
        if any(one is None for one in call.uses[layer.name].recorded):
            return None
        a, g = factors_of(call, layer, gradients.pop(layer.name, None), plan.outputs.rows)
        if a.is_floating_point() != isinstance(layer.rule, LinearRule):
            return None
        found[type(layer.rule)].append((a, g.permute(1, 2, 0, 3)))
    if not all(found.values()):
        return None
    (words, at_words), (inputs, at_outputs) = (
        (torch.cat([a for a, _ in pairs], 1), torch.cat([g for _, g in pairs], 1)) for pairs in found.values()
    )
    dtype = torch.promote_types(at_words.dtype, torch.promote_types(inputs.dtype, at_outputs.dtype))
    columns = at_outputs.flatten(0, 2).any(0).nonzero().flatten()
    at_outputs = at_outputs[..., columns]
    active = at_outputs.flatten(2).any(2)  # [k, q]
    order = active.to(torch.int8).argsort(stable=True, dim=1, descending=True)[:, : max(1, int(active.sum(1).max()))]
    rows = torch.arange(len(order), device=order.device)[:, None]
    return _Factors(
        words, at_words.to(dtype), inputs[rows, order].to(dtype), at_outputs[rows, order].to(dtype), columns
    )


def _longer(factor: Tensor, positions: int, fill: int) -> Tensor:
    """A factor [k, p, ...] with more positions."""
    if factor.shape[1] == positions:
        return factor
    more = factor.new_full((len(factor), positions - factor.shape[1], *factor.shape[2:]), fill)
    return torch.cat((factor, more), 1)


def _add(plan: CapturePlan, kernel: Tensor, a: Tensor, g: Tensor) -> None:
    """Adds the kernel of one use with itself, from a [n, s, d] and g [n, s, r, m]."""
    n, s, r, m = g.shape
    shape = Shape(n, r, r * r, s, a.shape[2], m, bias=False)
    route = choose_route(shape, most_numbers=shape.n * shape.r * s * (a.shape[2] + m), budget=0, keep_factors=True)
    factors = LayerFactors(a, g, False, by_jacobian=route.name == "jacobian slices", unchecked=True)
    add_kernel(kernel, factors, factors, plan.memory.work)


def _add_products(blocks: Tensor, factors: _Factors) -> None:
    """Adds the products of the gradients of one use with those of the other, to [n, r, n, r]."""
    c = len(factors.columns)
    if c == 0:
        return
    h, at_outputs = factors.inputs.double(), factors.at_outputs.double()
    for i, (words, g) in enumerate(zip(factors.words.squeeze(2), factors.at_words, strict=True)):
        place = torch.searchsorted(factors.columns, words).clamp_(max=c - 1)  # [p]
        among = factors.columns[place] == words
        if not bool(among.any()):
            continue
        of_words = at_outputs[..., place[among]]  # [n, q, r, p]
        products = torch.einsum("pcd,nqd->nqcp", g[among].double(), h)
        of_sample = torch.einsum("nqcp,nqep->cne", products, of_words)  # [r, n, r]
        blocks[i] += of_sample
        blocks[:, :, i] += of_sample.permute(1, 2, 0)
