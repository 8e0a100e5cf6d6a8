"""How the tangent features Psi y~ change at a moment of training, and how the output Hessian H_w says they do."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from scipy.sparse.linalg import ArpackError
from torch import Tensor, nn

from experiments.common.hessian import OutputHessian, ParameterVector, centered_labels, features, loss_gradient
from experiments.common.store import Row
from experiments.common.training import DivergedError, Trainer

DIGITS = 6  # significant digits in the table of eigenvectors


@dataclass(frozen=True)
class Evolution:
    """Psi y~ at a moment of training: how it changes, and how H_w says it does; vectors [P] in float64.

    Attributes:
        theta: The parameters of a copy of the network.
        hessian: H_w for the mean loss on the probe.
        collinearity: -corr(w, y~). Both have mean zero, w because softmax and label sum to the same for every sample,
            so that Pearson's correlation is the cosine.
        predicted: -H_w Psi y~.
        changes: The changes of Psi y~ by their names in ``figure.CHANGES``.
    """

    theta: ParameterVector
    hessian: OutputHessian
    collinearity: float
    predicted: Tensor
    changes: dict[str, Tensor]


def cosine(a: Tensor, b: Tensor) -> float:
    """<a, b> / (|a| |b|) over all entries; nan if a or b is zero."""
    return float((a * b).sum() / (a.norm() * b.norm()))


def next_parameters(trainer: Trainer) -> Tensor:
    """The parameters theta(t + 1), [P], after training's next step, which a copy of the trainer takes."""
    ahead = Trainer(copy.deepcopy(trainer.model), trainer.x, trainer.y, trainer.recipe)
    ahead.restore(trainer.state())
    ahead.step()
    return ParameterVector(ahead.model).get()


def features_at(model: nn.Module, vector: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """Psi v, [P], for a model with other parameters [P]; the running statistics of its norm layers stay."""
    there = copy.deepcopy(model)
    theta = ParameterVector(there)
    theta.set(vector)
    return features(theta, there(x), v)


def evolution(trainer: Trainer, x: Tensor, y: Tensor) -> Evolution:
    """Measure the evolution on a probe x: [n, d], y: [n]; changes nothing.

    The numbers are in float64. In float32 the change in a step has a relative error of 1e-6, but now and then one of
    1e-2, where a ReLU is so close to its kink that rounding decides on its side.
    """
    model = copy.deepcopy(trainer.model).double().eval()
    x = x.double()
    theta, outputs = ParameterVector(model), model(x)
    w, labels = loss_gradient(outputs, y), centered_labels(y, outputs.shape[1], outputs.dtype)
    of_loss, of_labels = OutputHessian(theta, outputs, w), OutputHessian(theta, outputs, labels)
    full_batch = theta.get() - trainer.recipe.lr * of_loss.features
    return Evolution(
        theta,
        of_loss,
        -cosine(w, labels),
        -(of_loss @ of_labels.features),
        {
            "step": features_at(model, next_parameters(trainer), x, labels) - of_labels.features,
            "full_batch": features_at(model, full_batch, x, labels) - of_labels.features,
            "infinitesimal": -(of_labels @ of_loss.features),
        },
    )


def correlations(of: Evolution) -> Row:
    """Columns collinearity, and <change>_correlation with what H_w predicts, for all layers and for each alone.

    Correlations are cosines, which a rotation of all parameters, such as the one into a basis of eigenvectors, leaves
    as they are.
    """
    row = {"collinearity": of.collinearity}
    energy = of.theta.inner_products(of.predicted, of.predicted)
    for name, change in of.changes.items():
        row[f"{name}_correlation"] = cosine(change, of.predicted)
        products = of.theta.inner_products(change, of.predicted)
        by_layer = products / (of.theta.inner_products(change, change) * energy).sqrt()
        row |= {f"{name}_correlation/{layer}": v for layer, v in zip(of.theta.layers, by_layer.tolist(), strict=True)}
    return row


def eigenvectors(of: Evolution, iteration: int, count: int) -> list[Row]:
    """The top eigenpairs of H_w, a line for each, with the greatest absolute eigenvalue first.

    The columns are eigenvalue, energy/<layer> for the squared norm of the eigenvector's part in a layer, and
    coordinate/<change> for each change, and the predicted one, over its norm in the basis of eigenvectors.

    Raises:
        DivergedError: If there are none to be found: the output Hessian of a dead network is zero.
    """
    try:
        pairs = of.hessian.top(count)
    except ArpackError as error:
        raise DivergedError(f"no eigenvectors of the output Hessian at iteration {iteration} ({error})") from error
    vectors = torch.from_numpy(pairs.vectors)
    columns = {"eigenvalue": torch.from_numpy(pairs.values)}
    energies = of.theta.inner_products(vectors, vectors)
    columns |= {f"energy/{layer}": values for layer, values in zip(of.theta.layers, energies, strict=True)}
    changes = {"predicted": of.predicted, **of.changes}
    columns |= {f"coordinate/{name}": (v / v.norm()).cpu() @ vectors for name, v in changes.items()}
    return [
        {"iteration": iteration, "index": i}
        | {name: float(f"{values[i - 1]:.{DIGITS}g}") for name, values in columns.items()}
        for i in range(1, count + 1)
    ]
