"""Change of every layer's alignment in one step of gradient descent, measured and by equation 25 of the paper.

A_l = |Psi_l y~|^2 / (||C K_l C||_F |y~|^2) for centered labels y~: [n o] and tangent features Psi_l of layer l. The
equation leaves the norm of the kernel aside, and simplifies the numerator in further stages; each has a column here.
H_v is the output Hessian of v, w the gradient of the loss with respect to the outputs, eta the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

import ahkernels as ah
from experiments.common.hessian import OutputHessian, ParameterVector, centered_labels, features, loss_gradient
from experiments.common.store import Row


def step_changes(model: nn.Module, x: Tensor, y: Tensor, lr: float, signs: Iterable[Tensor]) -> list[Row]:
    """(A_l(t + 1) - A_l(t)) / A_l(t) for the next step at the model's parameters, which are left as they were.

    Args:
        model: A model [n, d] -> [n, o] in float64 and in eval mode.
        x: The samples, [n, d].
        y: The classes, [n].
        lr: The learning rate eta.
        signs: See ``sampled_moments``.

    Returns:
        A row for every layer, with the columns
        layer: The number of the layer, counted from the input.
        measured: The change with nothing left out.
        numerator: The change with the norm of the kernel as it was.
        linearised: The same with Psi(t) y~ - eta H_y~ Psi w in place of Psi(t + 1) y~ (equation 9), which leaves
            out that the features of the layers below a unit jump when it switches.
        collinear: The same with (I - eta H_w) Psi(t) y~ in its place (equation 10), as if y~ were a multiple of w.
        traces: The change by the traces of equation 25, as if the parameters were independent of the Hessian, and
            isotropic.
        traces_error: The standard error of their estimate.
    """
    theta = ParameterVector(model)
    outputs = model(x)
    w, labels = loss_gradient(outputs, y), centered_labels(y, outputs.shape[1], outputs.dtype)
    of_labels, of_loss = OutputHessian(theta, outputs, labels), OutputHessian(theta, outputs, w)
    before = of_labels.features

    def change(after: Tensor) -> Tensor:
        """The relative change of |Psi_l y~|^2, [L]."""
        return theta.inner_products(after, after) / theta.inner_products(before, before) - 1

    linearised = change(before - lr * (of_labels @ of_loss.features))
    collinear = change(before - lr * (of_loss @ before))
    traces, error = predicted_change(sampled_moments(of_loss, theta, signs), lr)

    aligned, here = _alignments(model, x, y), theta.get()
    theta.set(here - lr * of_loss.features)
    measured = _alignments(model, x, y) / aligned - 1
    numerator = change(features(theta, model(x), labels))
    theta.set(here)

    columns = {
        "measured": measured,
        "numerator": numerator,
        "linearised": linearised,
        "collinear": collinear,
        "traces": traces,
        "traces_error": error,
    }
    return [
        {"layer": i + 1, **{name: float(values[i]) for name, values in columns.items()}}
        for i in range(len(theta.layers))
    ]


def rademacher(size: int, count: int, seed: np.random.SeedSequence, device: torch.device) -> Iterator[Tensor]:
    """Yield ``count`` vectors [size] of independent fair signs in float64."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield torch.from_numpy(rng.integers(0, 2, size) * 2.0 - 1.0).to(device)


def sampled_moments(hessian: OutputHessian, theta: ParameterVector, signs: Iterable[Tensor]) -> Tensor:
    """|M_l H z|^2, <M_l H z, M_l H^2 z> and |M_l H^2 z|^2 for each z, [N, 3, L]; M_l projects on layer l.

    Their expectations are tr(M_l H^2), tr(M_l H^3) and tr(M_l H^4) (Hutchinson's estimator).

    Args:
        hessian: The output Hessian H.
        theta: The parameters.
        signs: N vectors z: [P], whose entries have mean 0 and variance 1 and are uncorrelated.
    """
    samples = []
    for z in signs:
        once = hessian @ z
        twice = hessian @ once
        samples.append(
            torch.stack([theta.inner_products(a, b) for a, b in ((once, once), (once, twice), (twice, twice))])
        )
    return torch.stack(samples)


def predicted_change(moments: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """-2 eta tr(M_l H^3) / tr(M_l H^2) + eta^2 tr(M_l H^4) / tr(M_l H^2) (equation 25), and its standard error.

    Args:
        moments: The moments for N >= 2 vectors, [N, 3, L].
        lr: The learning rate eta.

    Returns:
        The change and its error, [L] each. The error is to first order the one of a ratio of two means.
    """
    second, third, fourth = moments.unbind(1)
    numerator = lr**2 * fourth - 2 * lr * third
    change = numerator.mean(0) / second.mean(0)
    error = (numerator - change * second).std(0) / second.mean(0) / math.sqrt(len(moments))
    return change, error


def _alignments(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The alignments A_l, [L]."""
    return ah.layerwise_alignment(model, x, y, precision="highest").cka
