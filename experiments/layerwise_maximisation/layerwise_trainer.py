"""Layer-wise feature maximisation (appendix F, algorithm 1): layers trained one after the other, from the input on.

A hidden layer is trained until its activations of images of one class have the inner product 1/2, and those of
different classes 0; then it stays, and its activations, normalised, are the inputs of the next. The last layer is
trained on the cross-entropy.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.common.models import feedforward
from experiments.common.store import Row
from experiments.common.training import EVALUATION_BATCH, Recipe, Trainer

TARGET = 0.5  # inner product of activations of one class


class Normalise(nn.Module):
    """Divides every sample by its Euclidean norm, [n, d] -> [n, d]."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1)


def network(inputs: int, width: int, depth: int, outputs: int, seed: int) -> nn.Sequential:
    """A network with leaky ReLU, biases, and inputs of norm 1 to every layer.

    It is made of normalise0, layer1, relu1, normalise1, layer2, ..., layerL. Weights of a layer of N units begin as
    N(0, 2 / N), so that its activations have a squared norm of about 1 and not N / fan_in, from which the first layer
    of a narrow network falls to activations near zero before it learns. Biases begin at zero. Arguments and errors are
    those of ``models.feedforward``.
    """
    start = feedforward(inputs, width, depth, outputs, seed)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for index in range(1, depth + 1):
        layer = start.get_submodule(f"layer{index}")
        with torch.no_grad():
            layer.weight.mul_(math.sqrt(layer.in_features / layer.out_features))
        layer.bias = nn.Parameter(torch.zeros(layer.out_features))
        modules[f"normalise{index - 1}"] = Normalise()
        modules[f"layer{index}"] = layer
        if index < depth:
            modules[f"relu{index}"] = nn.LeakyReLU()
    return nn.Sequential(modules)


def objective(features: Tensor, y: Tensor) -> Tensor:
    """Mean over all pairs of samples of (<features_i, features_j> - TARGET [y_i = y_j])^2.

    The paper has the sum; with the mean, batches and sets of any size compare. The sums over pairs come from products
    of N x N and of N x classes numbers, so that no n x n matrix is formed.

    Args:
        features: The activations of a layer before they are normalised, [n, N].
        y: The classes, [n].
    """
    classes = functional.one_hot(y).to(features.dtype)
    alike = features.T @ features
    within = classes.T @ features
    pairs = alike.square().sum() - 2 * TARGET * within.square().sum() + TARGET**2 * classes.sum(dim=0).square().sum()
    return pairs / len(y) ** 2


class LayerwiseTrainer(Trainer):
    """Trains a ``network`` layer by layer, each until its loss on the validation set no longer falls.

    A layer ends when ``patience`` epochs have brought no validation loss below that of all earlier epochs, or after
    recipe.epochs; it then gets the weights back that the least one belongs to.

    Attributes:
        layer: The number of the layer in training, from 1; L + 1 at the end.
        total: The number of optimizer steps if every layer takes all its epochs.

    Args:
        model: A model of ``network``.
        x: The training samples, [n, d].
        y: The classes of the training samples, [n].
        validation: The samples and classes of the validation set.
        recipe: How each layer is trained, and for how many epochs at most.
        patience: The number of epochs without a lower loss that end a layer.
        ended: Called at the end of every layer with its number, the epochs trained, the epochs that led to the weights
            kept, the loss on the validation set before and after, and the loss on as many training samples after.
    """

    def __init__(
        self,
        model: nn.Sequential,
        x: Tensor,
        y: Tensor,
        validation: tuple[Tensor, Tensor],
        recipe: Recipe,
        patience: int,
        ended: Callable[[Row], None],
    ) -> None:
        super().__init__(model, x, y, recipe)
        self._validation, self._patience, self._ended = validation, patience, ended
        self._stages = stages(model)
        self.total *= len(self._stages)
        self._begin(1)

    @property
    def done(self) -> bool:
        """Whether all layers are trained."""
        return self.layer > len(self._stages)

    def loss(self, chosen: Tensor) -> Tensor:
        """The loss of the layer in training."""
        return self._loss(self._inputs[chosen], self.y[chosen])

    def step(self) -> float:
        """Do a step of ``Trainer``; at the end of an epoch the layer may end and the next one begin."""
        value = super().step()
        if self.iteration % self.batches_per_epoch == 0:
            self._end_epoch()
        return value

    def state(self) -> dict[str, Any]:
        """See ``Trainer.state``."""
        least = self._least | {"weights": {name: value.cpu() for name, value in self._least["weights"].items()}}
        return super().state() | {"layer": self.layer, "epochs": self._epochs, "before": self._before, "least": least}

    def restore(self, state: dict[str, Any]) -> None:
        """See ``Trainer.restore``."""
        self.model.load_state_dict(state["model"])  # what the layer's inputs come from
        self._begin(state["layer"])
        super().restore(state)
        self._epochs, self._before, self._least = state["epochs"], state["before"], state["least"]

    def _begin(self, layer: int) -> None:
        """Begin a layer with inputs from the layers below, which stay as they are from now on."""
        self.layer, self._epochs = layer, 0
        below, self._stage = self._stages[layer - 1]
        self._inputs = outputs(below, self.x)
        self._validation_inputs = outputs(below, self._validation[0])
        self.optimizer = self.recipe.build(self._stage.parameters())
        self._before = self._validation_loss()
        self._keep(math.inf)  # no epoch yet

    def _loss(self, inputs: Tensor, y: Tensor) -> Tensor:
        of = objective if self.layer < len(self._stages) else functional.cross_entropy
        return of(self._stage(inputs), y)

    @torch.no_grad()
    def _validation_loss(self) -> float:
        return self._loss(self._validation_inputs, self._validation[1]).item()

    def _keep(self, loss: float) -> None:
        """Keep the present weights as those of the least validation loss."""
        weights = {name: value.clone() for name, value in self._stage.state_dict().items()}
        self._least = {"loss": loss, "epochs": self._epochs, "weights": weights}

    def _end_epoch(self) -> None:
        self._epochs += 1
        loss = self._validation_loss()
        if loss < self._least["loss"]:
            self._keep(loss)
        if self._epochs - self._least["epochs"] >= self._patience or self._epochs == self.recipe.epochs:
            self._end_layer()

    @torch.no_grad()
    def _end_layer(self) -> None:
        self._stage.load_state_dict(self._least["weights"])
        count = len(self._validation_inputs)  # the diagonal has the same share in both sets
        self._ended(
            {
                "layer": self.layer,
                "epochs": self._epochs,
                "epochs_kept": self._least["epochs"],
                "validation_loss_before": self._before,
                "validation_loss": self._least["loss"],
                "train_loss": self._loss(self._inputs[:count], self.y[:count]).item(),
            }
        )
        if self.layer < len(self._stages):
            self._begin(self.layer + 1)
        else:
            self.layer += 1


def stages(model: nn.Sequential) -> list[tuple[nn.Sequential, nn.Sequential]]:
    """For each layer of a ``network``, all modules below it, and the layer with its activation."""
    found = []
    for index, module in enumerate(model):
        if isinstance(module, nn.Linear):
            activation = model[index + 1 : index + 2]  # none after the last layer
            found.append((model[:index], model[index : index + 1 + len(activation)]))
    return found


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs of a network for x: [n, ...], a few samples at a time."""
    return torch.cat([model(some) for some in x.split(EVALUATION_BATCH)])
