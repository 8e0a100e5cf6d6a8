"""Tangent features and output Hessians as products, without a Jacobian (appendix B.4 of the paper).

F: [n, o] are the outputs of all samples, theta: [P] all parameters as one vector, layer after layer. Tangent features
are Psi = dF / dtheta, [P, n o]; the output Hessian is H_v = sum over samples x and outputs i of
v_(x, i) d^2 f^i(x) / dtheta^2, [P, P], for v: [n, o].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional

Array = NDArray[np.float64]


class ParameterVector:
    """A model's parameters as one vector, layer after layer.

    Attributes:
        layers: Names of the modules that have parameters of their own, in order of registration.
        size: P.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters: list[nn.Parameter] = []
        self._slices: dict[str, slice] = {}
        start = 0
        for name, module in model.named_modules():
            own = list(module.parameters(recurse=False))
            if own:
                end = start + sum(p.numel() for p in own)
                self._slices[name] = slice(start, end)
                self.parameters += own
                start = end
        self.size = start

    @property
    def layers(self) -> list[str]:
        """The names of the layers; see the class."""
        return list(self._slices)

    def get(self) -> Tensor:
        """A copy of the parameters, [P]."""
        return join(self.parameters).detach().clone()

    def set(self, vector: Tensor) -> None:
        """Overwrite the parameters by [P]."""
        with torch.no_grad():
            for parameter, part in zip(self.parameters, self.split(vector), strict=True):
                parameter.copy_(part)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Split a vector [P] into tensors of the parameters' shapes."""
        parts = vector.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def of_layer(self, vector: Tensor, layer: str) -> Tensor:
        """The entries of a layer's parameters, [P, ...] -> [P_l, ...]."""
        return vector[self._slices[layer]]

    def inner_products(self, a: Tensor, b: Tensor) -> Tensor:
        """<a, b> over the parameters of each layer, [P, ...] -> [L, ...]; <a, a> is the layer's share of the energy."""
        return torch.stack([(self.of_layer(a, name) * self.of_layer(b, name)).sum(dim=0) for name in self.layers])


def join(tensors: list[Tensor] | tuple[Tensor, ...] | list[nn.Parameter]) -> Tensor:
    """Tensors of any shapes as one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues [k], the greatest absolute value first, and orthonormal eigenvectors [P, k]."""

    values: Array
    vectors: Array


class OutputHessian:
    """Psi v, and H_v as a linear operator, at the parameters that the model has when this is made.

    One backward pass is recorded once; every product is a backward pass through it. The model must be in eval mode, and
    its parameters unchanged for as long as this is used.

    Attributes:
        features: Psi v, [P].

    Args:
        theta: The model's parameters.
        outputs: F, [n, o], with the graph that led to it.
        v: [n, o].
    """

    def __init__(self, theta: ParameterVector, outputs: Tensor, v: Tensor) -> None:
        self._theta = theta
        total = (outputs * v.detach()).sum()
        gradients = torch.autograd.grad(total, theta.parameters, create_graph=True, materialize_grads=True)
        self._gradient = join(gradients)
        self.features = self._gradient.detach()

    def __matmul__(self, u: Tensor) -> Tensor:
        """H_v u, [P] -> [P]."""
        products = torch.autograd.grad(
            self._gradient, self._theta.parameters, u.to(self.features), retain_graph=True, materialize_grads=True
        )
        return join(products)

    def top(self, k: int, seed: int = 0, tolerance: float = 1e-4) -> Eigenpairs:
        """The k eigenvalues of greatest absolute value by implicitly restarted Lanczos, from a seeded start.

        Args:
            k: The number of eigenvalues, at most P - 1.
            seed: The seed of the start.
            tolerance: The relative tolerance of an eigenvalue.

        Raises:
            scipy.sparse.linalg.ArpackNoConvergence: If they do not converge.
        """

        def product(u: Array) -> Array:
            out: Array = (self @ torch.from_numpy(np.ascontiguousarray(u.reshape(-1)))).double().cpu().numpy()
            return out

        operator = LinearOperator((self._theta.size,) * 2, matvec=product, dtype=np.float64)
        start = np.random.default_rng(seed).standard_normal(self._theta.size)
        values, vectors = eigsh(operator, k, which="LM", v0=start, tol=tolerance)
        order = np.argsort(-np.abs(values))
        return Eigenpairs(values[order], vectors[:, order])


def features(theta: ParameterVector, outputs: Tensor, v: Tensor) -> Tensor:
    """Psi v for v: [n, o], [P]; without the graph that products with H_v need."""
    gradients = torch.autograd.grad((outputs * v).sum(), theta.parameters, retain_graph=True, materialize_grads=True)
    return join(gradients)


def loss_gradient(outputs: Tensor, y: Tensor) -> Tensor:
    """w = dL / dF of the mean cross-entropy, [n, o]: (softmax of the outputs - one-hot y) / n."""
    outputs = outputs.detach()
    return (outputs.softmax(dim=1) - functional.one_hot(y, outputs.shape[1])) / len(y)


def centered_labels(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """y~ = C y, [n, classes]: one-hot labels minus the mean over all entries."""
    one_hot = functional.one_hot(y, classes).to(dtype)
    return one_hot - one_hot.mean()
