"""The rules for nn.MultiheadAttention with the samples first: one for its packed projections, one for its output.

It calls no module for its projections, so that the gradients at its output are taken back through the attention here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ahkernels.capture.guard import quietly_batched

# The names of the arguments of its forward, in their order.
_ARGUMENTS = (
    *("query", "key", "value", "key_padding_mask", "need_weights"),
    *("attn_mask", "average_attn_weights", "is_causal"),
)


class _AttentionRule:
    """The part that both rules share: it recomputes the heads of a call."""

    def record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor | None, ...] | None:
        """Keeps query, key and value [n, length, d], and what the masks add to the scores.

        A key that is the query, and a value that is the key, are kept as None. Nothing is kept, so that the rule does
        not apply, if the samples do not come first or the attention adds zeros to keys and values.
        """
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        query, key, value = given["query"], given["key"], given["value"]
        if query.dim() != 3 or not module.batch_first or module.add_zero_attn:
            return None
        key_of_value = None if value is key else value
        return query, None if key is query else key, key_of_value, _added_to_scores(module, given, query, key)

    def _heads(
        self, module: Any, recorded: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Recomputes the attention with gradients on.

        Returns:
            The inputs of the three projections, their outputs q, k and v, and the output of the heads [n, l, d].
        """
        query, key, value, added = recorded
        key = query if key is None else key
        value = key if value is None else value
        weights = module.in_proj_weight.detach().chunk(3)
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.detach().chunk(3)
        projected = [
            _projected(*one).requires_grad_() for one in zip((query, key, value), weights, biases, strict=True)
        ]
        with torch.enable_grad():
            # [n, h, l, d / h]
            q, k, v = (torch.unflatten(z, 2, (module.num_heads, -1)).transpose(1, 2) for z in projected)
            scores = q @ k.mT / math.sqrt(q.shape[-1])
            if added is not None:
                scores = scores + added
            heads = (scores.softmax(3) @ v).transpose(1, 2).flatten(2)
        return [query, key, value], projected, heads


class PackedProjectionRule(_AttentionRule):
    """The packed projections to queries, keys and values, whose weight has a third of its rows for each of them.

    Where inputs are the same tensor, as in self-attention, they share positions, and g has gradients in the rows of
    each of them. Otherwise each input has positions of its own, and g is zero in the rows of the others.
    """

    def parameters(self, module: Any) -> list[str]:
        """Lists weight, and bias where there is one; nothing if they are not packed."""
        if not _is_packed(module):
            return []
        return ["in_proj_weight"] if module.in_proj_bias is None else ["in_proj_weight", "in_proj_bias"]

    def factors(self, module: Any, recorded: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Forms inputs [n, p, d] and gradients at the projections [r, n, p, 3 d]."""
        (query, key, value), projected, heads = self._heads(module, recorded)
        gradient, weight = _of_one_dtype(gradient, module.out_proj.weight.detach())
        at_heads = (gradient @ weight).to(heads.dtype)
        with quietly_batched:
            parts = torch.autograd.grad(heads, projected, at_heads, is_grads_batched=True)
        if value is key and key is query:
            return query, torch.cat(parts, 3)
        inputs: list[Tensor] = [query]
        blocks: list[list[Tensor | None]] = [[parts[0], None, None]]
        if value is key:
            inputs += [key]
            blocks += [[None, parts[1], parts[2]]]
        else:
            inputs += [key, value]
            blocks += [[None, parts[1], None], [None, None, parts[2]]]
        padded = []
        for block in blocks:
            known = next(part for part in block if part is not None)
            padded.append(torch.cat([torch.zeros_like(known) if part is None else part for part in block], 3))
        return torch.cat(inputs, 1), torch.cat(padded, 2)

    def has_bias(self, module: Any) -> bool:
        """Tells whether the projections have biases."""
        return module.in_proj_bias is not None


class OutputProjectionRule(_AttentionRule):
    """The output projection: a Linear on the output of the heads, which the attention applies without a call."""

    def parameters(self, module: Any) -> list[str]:
        """Lists weight, and bias where there is one; nothing if the packed projections have no rule."""
        if not _is_packed(module):
            return []
        return ["weight"] if module.out_proj.bias is None else ["weight", "bias"]

    def factors(self, module: Any, recorded: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Forms the output of the heads [n, l, d]; the gradients at the output are [r, n, l, d] already."""
        return self._heads(module, recorded)[2].detach(), gradient

    def has_bias(self, module: Any) -> bool:
        """Tells whether the projection has a bias."""
        return module.out_proj.bias is not None


def _of_one_dtype(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the widest of their dtypes, which differ under autocast."""
    dtype = functools.reduce(torch.promote_types, [one.dtype for one in tensors])
    return [one.to(dtype) for one in tensors]


def _projected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x, weight = _of_one_dtype(x, weight)
    return nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _is_packed(module: Any) -> bool:
    """Tells whether queries, keys and values have one packed weight, and keys have no bias of their own."""
    return module.in_proj_weight is not None and module.bias_k is None


def _added_to_scores(module: Any, given: Mapping[str, Any], query: Tensor, key: Tensor) -> Tensor | None:
    """Sums the masks as numbers that are added to the scores, [n, heads, l, length of the key]; None without masks."""
    parts = []
    padding, mask = given.get("key_padding_mask"), given.get("attn_mask")
    if padding is not None:
        parts.append(_numbers(padding, query)[:, None, None, :])
    if mask is not None:
        mask = _numbers(mask, query)
        parts.append(mask if mask.dim() == 2 else torch.unflatten(mask, 0, (query.shape[0], module.num_heads)))
    if not parts:
        return None
    shape = (query.shape[0], module.num_heads, query.shape[1], key.shape[1])
    total: Tensor = sum(parts, start=query.new_zeros(())).expand(shape)
    return total


def _numbers(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask, -math.inf)


RULES = {nn.MultiheadAttention: PackedProjectionRule()}
UNCALLED_RULES: dict[tuple[type[nn.Module], str], OutputProjectionRule] = {
    (nn.MultiheadAttention, "out_proj"): OutputProjectionRule()
}
