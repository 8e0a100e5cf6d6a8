"""The rules for nn.Embedding and nn.EmbeddingBag, which are a Linear without bias on one-hot words.

The gradient of the table is the gradient at the output, in the row of the word. So <a, a'> is 1 where two words are the
same and 0 otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class EmbeddingRule:
    """At each word, a is one-hot, or zero for padding, and g is the gradient at the output.

    A matrix over the whole vocabulary would be large, so that a is given by the words themselves.
    """

    def parameters(self, module: Any) -> list[str]:
        """Lists the table; nothing if gradients are scaled by the frequency of words."""
        return [] if module.scale_grad_by_freq else ["weight"]

    def record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Keeps the words [n, ...]; None if there is no dimension of samples."""
        (words,) = (*args, *kwargs.values())
        return words if words.dim() >= 1 else None

    def factors(self, module: Any, recorded: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Forms words [n, p, 1], -1 for padding, and gradients [r, n, p, size]."""
        words = recorded.reshape(len(recorded), -1, 1).long()
        if module.padding_idx is not None:
            words = words.masked_fill(words == module.padding_idx, -1)
        return words, gradient.reshape(*gradient.shape[:2], -1, gradient.shape[-1])

    def has_bias(self, module: Any) -> bool:
        """Returns False always."""
        return False


class EmbeddingBagRule:
    """At each bag, a has the count or the summed weight of each word, and g is the gradient at the output.

    It applies to sums and means over bags of one size. For means, a is divided by the number of words in the bag.
    """

    def parameters(self, module: Any) -> list[str]:
        """Lists the table; nothing for maxima, or if gradients are scaled by the frequency of words."""
        return [] if module.scale_grad_by_freq or module.mode == "max" else ["weight"]

    def record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor | None, ...] | None:
        """Keeps the words [n, size of a bag] and their weights; None if bags are given by offsets."""
        given = dict(zip(("input", "offsets", "per_sample_weights"), args, strict=False)) | kwargs
        words = given["input"]
        return (words, given.get("per_sample_weights")) if words.dim() == 2 else None

    def factors(self, module: Any, recorded: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Forms bags [n, 1, vocabulary] and gradients [r, n, 1, size]."""
        words, weights = recorded
        counted = (
            torch.ones_like(words, dtype=torch.bool) if module.padding_idx is None else words != module.padding_idx
        )
        weights = counted.to(gradient.dtype) if weights is None else weights * counted
        if module.mode == "mean":
            weights = weights / counted.sum(1, keepdim=True).clamp(min=1)
        bags = gradient.new_zeros(len(words), module.num_embeddings).scatter_add_(1, words, weights)
        return bags.unsqueeze(1), gradient.unsqueeze(2)

    def has_bias(self, module: Any) -> bool:
        """Returns False always."""
        return False


RULES: dict[type[nn.Module], EmbeddingRule | EmbeddingBagRule] = {
    nn.Embedding: EmbeddingRule(),
    nn.EmbeddingBag: EmbeddingBagRule(),
}
