"""Libraries' way: the Jacobian of each layer by torch.func, then K and its alignment with the labels."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap


def layers_of(model: nn.Module) -> dict[str, list[str]]:
    """Names of the parameters of each module that has some."""
    layers: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return layers


def jacobian(model: nn.Module, names: list[str], x: torch.Tensor, chunk: int | None) -> dict[str, torch.Tensor]:
    """Jacobian of the outputs by the named parameters, name -> [n*o, numbers], formed `chunk` samples at a time."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    own = {name: parameters[name] for name in names}
    rest = {name: value for name, value in parameters.items() if name not in own}

    def output(values: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return functional_call(model, {**rest, **values}, (sample[None],))[0]

    found = vmap(jacrev(output), (None, 0), chunk_size=chunk)(own, x)
    return {name: value.flatten(2).flatten(0, 1) for name, value in found.items()}


def alignment(parts: Iterable[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    """A of K = sum of J J^T over the parts of a layer's Jacobian [n*o, numbers]; y one-hot [n, o]."""
    return kernel_alignment(kernel(parts), y)


def kernel_alignment(k: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A of K [n*o, n*o], row x*o + i, fp64; y one-hot [n, o]."""
    target = (y - y.mean()).reshape(-1)
    centered = k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()
    norm = torch.linalg.vector_norm(centered, dim=1).double().square().sum().sqrt()
    return (target @ k @ target).double() / (norm * target.double().square().sum())


def kernel(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """K = sum of J J^T over the parts of a Jacobian [n*o, numbers]."""
    k: torch.Tensor | None = None
    for j in parts:
        k = j @ j.T if k is None else k.addmm_(j, j.T)
    assert k is not None, "a layer has at least one parameter"
    return k


def layer_by_layer(model: nn.Module, x: torch.Tensor, y: torch.Tensor, chunk: int | None = None) -> torch.Tensor:
    """Alignment of every layer, fp64 [L]: a pass through the network for each, and one Jacobian at a time."""
    found = [alignment(list(jacobian(model, names, x, chunk).values()), y) for names in layers_of(model).values()]
    return torch.stack(found).detach()


def all_at_once(model: nn.Module, x: torch.Tensor, y: torch.Tensor, chunk: int | None = None) -> torch.Tensor:
    """Alignment of every layer, fp64 [L], from one pass that forms all Jacobians and holds them in memory."""
    layers = layers_of(model)
    parts = jacobian(model, [name for names in layers.values() for name in names], x, chunk)
    return torch.stack([alignment([parts.pop(name) for name in names], y) for names in layers.values()]).detach()
