"""Tied tables: a parameter that is both an embedding and the weight of a linear layer, as in language models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ahkernels.capture.rules.embedding import EmbeddingRule
from ahkernels.capture.rules.linear import LinearRule
from ahkernels.capture.selection import Layer

_WORDS, _OUTPUTS = EmbeddingRule(), LinearRule()


def uses_of_table(model: nn.Module, parameters: Sequence[str]) -> list[Layer]:
    """Lists the modules that use a tied table, each as a layer with its rule.

    Args:
        model: The network.
        parameters: The names of the parameters of a layer.

    Returns:
        Embeddings and linear layers; nothing if there are not some of both, or there is any other module.
    """
    if len(parameters) != 1:
        return []
    table, found = model.get_parameter(parameters[0]), []
    for name, module in model.named_modules():
        if not any(one is table for one in module._parameters.values()):
            continue
        if isinstance(module, nn.Embedding) and not module.scale_grad_by_freq:
            found.append(Layer(name, module, tuple(parameters), _WORDS, doubtful=True, others=()))
        elif isinstance(module, nn.Linear):
            found.append(Layer(name, module, tuple(parameters), _OUTPUTS, doubtful=True, others=()))
        else:
            return []
    return found if len({type(layer.rule) for layer in found}) == 2 else []
