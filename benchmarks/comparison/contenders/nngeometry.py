"""NNGeometry: Gram matrices of dense layers, Jacobians of the others.

Its GramMatrix makes a pass through the network for every pair of outputs. Given a batch that holds every sample o
times, and a function that picks the output each copy stands for, it is done with two passes, and has the rows of K in
order. A layer collection of one layer has that layer's K, from the part of the network above its input; that of all
layers has the whole network's in one call. For convolutions it forms Jacobians whichever way it is asked, so that the
ResNet is measured by its Jacobian of all layers that fit in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison.problem import Problem

if TYPE_CHECKING:
    import torch

TITLE = "NNGeometry 0.4"
REQUIREMENTS = ("torch=={torch}", "nngeometry==0.4")


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    from benchmarks.comparison import completion

    model, (x, _), o = problem.torch_model(), problem.tensors(), problem.task.outputs
    if problem.task.network == "resnet18":
        return completion.from_jacobians(problem, model, jacobians(model, o))

    def kernels(layers: Sequence[int]) -> Iterator[torch.Tensor]:
        for layer in layers:
            yield gram(model[2 * layer :], model[: 2 * layer](x).detach(), o, first_layer_alone=True)

    return completion.from_kernels(problem, problem.task.depth, kernels, lambda: gram(model, x, o))


def gram(model: torch.nn.Sequential, x: torch.Tensor, o: int, first_layer_alone: bool = False) -> torch.Tensor:
    """K of all layers or of the first, [n*o, n*o]."""
    from nngeometry.gram import GramMatrix
    from nngeometry.layercollection import LayerCollection

    layers = LayerCollection()
    for layer in model[:1] if first_layer_alone else model[::2]:
        layers.add_layer_from_model(model, layer)
    rows, outputs = batch(x, o)
    return GramMatrix(model, rows, outputs(model), layer_collection=layers).to_torch()[0, :, 0]


def jacobians(model: torch.nn.Module, o: int) -> Callable[[Sequence[int], torch.Tensor], list[torch.Tensor]]:
    from nngeometry.jacobian import Jacobian
    from nngeometry.layercollection import LayerCollection

    from benchmarks.comparison import completion

    modules = completion.layers_of(model)

    def of_samples(group: Sequence[int], x: torch.Tensor) -> list[torch.Tensor]:
        layers = LayerCollection()
        for index in group:
            layers.add_layer_from_model(model, modules[index])
        rows, outputs = batch(x, o)
        found = Jacobian(model, rows, outputs(model), layer_collection=layers).to_torch()[0]
        return found.split([layer.numel() for layer in layers.layers.values()], 1)

    return of_samples


def batch(x: torch.Tensor, o: int) -> tuple[torch.utils.data.DataLoader, Callable]:
    """A loader of all copies of all samples, fetched at once, and a function that picks their outputs."""
    from torch.utils.data import DataLoader, Dataset

    from benchmarks.comparison import completion

    copies, outputs = completion.repeated(x, o)

    class Copies(Dataset):
        def __len__(self) -> int:
            return len(copies)

        def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
            return copies[rows], outputs[rows]

    loader = DataLoader(Copies(), batch_size=len(copies), collate_fn=lambda fetched: fetched)
    return loader, lambda model: lambda copies, outputs: model(copies).gather(1, outputs)
