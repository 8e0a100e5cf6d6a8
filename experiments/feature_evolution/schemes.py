"""Evolution of tangent features by schemes that stand in for the network (appendix D of the paper).

F: [n, o] are the outputs on n training samples and w = dL / dF: [n, o] the gradient of their mean cross-entropy; Psi:
[P, n o] are the tangent features. A step of gradient descent at the learning rate eta changes the parameters by
-eta Psi w. The schemes simplify how Psi changes with them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import ahkernels as ah
from experiments.common.hessian import OutputHessian, ParameterVector, loss_gradient
from experiments.common.training import Recipe, Trainer

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # theta [P], w [n, o], Psi w [P] -> V Psi w [P]
RESOLVED = 1e-3  # a new w counts as in the span of the earlier ones if a smaller share of it lies outside


class TangentFeatures:
    """Psi at the parameters that a network has when this is made, as products.

    Attributes:
        kernels: K_l = Psi_l^T Psi_l of every layer by the layer's name.

    Args:
        model: A model [n, d] -> [n, o] of layers that are each used once.
        x: The samples, [n, d].
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.kernels = ah.tangent_kernels(model, x, precision="highest")
        self._theta = ParameterVector(model)

    def split(self, u: Tensor) -> list[Tensor]:
        """The parts of u, [q, P], that belong to the layers, [q, P_l] each."""
        return [self._theta.of_layer(u.T, layer).T for layer in self.kernels]

    def product(self, v: Tensor) -> Tensor:
        """Psi v, [P], for v: [n, o]."""
        return torch.cat([kernel.vjp(v.flatten()) for kernel in self.kernels.values()])

    def transposed_products(self, u: Tensor) -> list[Tensor]:
        """Psi_l^T u_l of every layer, [q, n o] each, for the rows of u: [q, P]."""
        if len(u) == 0:
            return [u.new_empty(0, kernel.shape[0]) for kernel in self.kernels.values()]
        return [kernel.jvp(part.T).T for kernel, part in zip(self.kernels.values(), self.split(u), strict=True)]


class Scheme:
    """Psi <- Psi + eta V Psi w w^T, theta <- theta - eta Psi w, F <- F - eta Psi^T Psi w (equations 16, 17; A = I).

    Psi is never formed: it is Psi_0 + D Q with an orthonormal basis of the w so far in the rows of Q. There are many
    steps, but w soon hardly leaves a space of few dimensions. A scheme whose outputs are no longer finite stands still.

    Attributes:
        theta: The parameters, [P].
        outputs: The outputs F, [n, o].
        basis: The basis Q, [r, n o].
        changes: The changes D^T, [r, P].

    Args:
        start: The features Psi_0.
        theta: The parameters at the start.
        outputs: The outputs at the start.
        y: The classes, [n].
        lr: The learning rate eta.
        velocity: Computes V Psi w. None stands for V = 0: the features stay as they are.
    """

    def __init__(
        self, start: TangentFeatures, theta: Tensor, outputs: Tensor, y: Tensor, lr: float, velocity: Velocity | None
    ) -> None:
        self._start, self._y, self._lr, self._velocity = start, y, lr, velocity
        self.theta, self.outputs = theta.clone(), outputs.clone()
        self.basis = outputs.new_empty(0, outputs.numel())
        self.changes = theta.new_empty(0, len(theta))

    def features(self, v: Tensor) -> Tensor:
        """Psi v for v: [n, o], [P]."""
        return self._start.product(v) + (self.basis @ v.flatten()) @ self.changes

    def kernel_changes(self) -> Iterator[Tensor]:
        """K_l - K_l at the start, [n o, n o] for every layer: B_l Q + Q^T B_l^T + Q^T G_l Q of B_l = Psi_0^T D_l."""
        products = self._start.transposed_products(self.changes)
        for product, part in zip(products, self._start.split(self.changes), strict=True):
            half = (product + part @ part.T @ self.basis / 2).T @ self.basis
            yield half + half.T

    def step(self) -> None:
        """Do one step of theta, F and Psi."""
        w = loss_gradient(self.outputs, self._y)
        if not 0 < float(w.norm()) < math.inf:
            return
        gradient = self.features(w)
        of_outputs = torch.stack(self._start.transposed_products(gradient[None])).sum(0)[0]
        of_outputs += (self.changes @ gradient) @ self.basis
        if self._velocity is not None:
            self._change(self._lr * self._velocity(self.theta, w, gradient), w.flatten())
        self.theta -= self._lr * gradient
        self.outputs -= self._lr * of_outputs.view_as(w)

    def _change(self, u: Tensor, w: Tensor) -> None:
        """Psi <- Psi + u w^T, up to a relative RESOLVED."""
        outside = w
        for _ in range(2):  # once leaves rounding
            outside = outside - (self.basis @ outside) @ self.basis
        size = outside.norm()
        if size > RESOLVED * w.norm():
            self.basis = torch.cat([self.basis, outside[None] / size])
            self.changes = torch.cat([self.changes, torch.zeros_like(u)[None]])
        self.changes.addr_(self.basis @ w, u)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, as CPU tensors (not copied if there already)."""
        return {name: getattr(self, name).cpu() for name in ("theta", "outputs", "basis", "changes")}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` returned."""
        for name, value in state.items():
            setattr(self, name, value.to(self.theta.device, copy=True))


def natural_rate(hessian: OutputHessian, w: Tensor) -> float:
    """The lambda whose lambda Psi w comes closest to V Psi w = -H_w Psi w / |w|^2, in least squares.

    It is minus H_w's Rayleigh quotient at the loss gradient Psi w, over |w|^2.
    """
    gradient = hessian.features
    return float(-(gradient @ (hessian @ gradient)) / (gradient @ gradient) / w.square().sum())


def generalised(model: nn.Module, x: Tensor) -> Velocity:
    """V = -H_w / |w|^2 of generalised optimal feature evolution for gradient descent (below equation 21).

    Args:
        model: The model, of which a copy gives H_w at the scheme's parameters.
        x: The samples, [n, d].
    """
    network = copy.deepcopy(model)
    parameters = ParameterVector(network)

    def velocity(theta: Tensor, w: Tensor, gradient: Tensor) -> Tensor:
        parameters.set(theta)
        return (OutputHessian(parameters, network(x), w) @ gradient) / -w.square().sum()

    return velocity


class Evolution(Trainer):
    """Full-batch gradient descent on a network, and schemes that start where it does and go along with it.

    Attributes:
        schemes: The schemes by name.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, lr: float, steps: int, schemes: Mapping[str, Scheme]
    ) -> None:
        super().__init__(model, x, y, Recipe(lr=lr, momentum=0.0, weight_decay=0.0, batch_size=len(x), epochs=steps))
        self.schemes = schemes

    def step(self) -> float:
        """See ``Trainer``."""
        loss = super().step()
        for scheme in self.schemes.values():
            scheme.step()
        return loss

    def state(self) -> dict[str, Any]:
        """See ``Trainer``."""
        return super().state() | {"schemes": {name: scheme.state() for name, scheme in self.schemes.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """See ``Trainer``."""
        super().restore(state)
        for name, scheme in self.schemes.items():
            scheme.restore(state["schemes"][name])


def alignment(kernel: Tensor, labels: Tensor) -> float:
    """A = <C K C, y~ y~^T> / (||C K C||_F |y~|^2) of a dense kernel (equation 7).

    Args:
        kernel: A symmetric kernel [n o, n o] in float64.
        labels: The centered labels y~, [n, o].
    """
    means, y = kernel.mean(0), labels.flatten()
    centered = kernel - means - means[:, None] + means.mean()
    return float(y @ kernel @ y / centered.norm() / (y @ y))
