"""Gradient descent and the schemes that stand in for it, side by side: what is measured of them along training."""

from __future__ import annotations

import argparse

from torch.nn import functional

from experiments.common import data
from experiments.common.hessian import OutputHessian, ParameterVector, centered_labels, loss_gradient
from experiments.common.measuring import progress
from experiments.common.models import feedforward_on
from experiments.common.store import Row
from experiments.feature_evolution.figure import SCHEMES
from experiments.feature_evolution.schemes import (
    Evolution,
    Scheme,
    TangentFeatures,
    alignment,
    generalised,
    natural_rate,
)


class Comparison:
    """Gradient descent and the schemes, from the network that the seed gives, and how to compare them."""

    def __init__(self, args: argparse.Namespace, dataset: data.Dataset) -> None:
        options = {"bias": args.bias, "initialisation": args.initialisation}
        self.model = feedforward_on(dataset, args.width, args.depth, args.seed, **options).double()
        self.dataset = dataset
        self.x, self.y = dataset.train_x, dataset.train_y
        self.labels = centered_labels(self.y, dataset.classes, self.x.dtype)
        self.parameters = ParameterVector(self.model)
        self.start, self.origin = TangentFeatures(self.model, self.x), self.parameters.get()
        rate = self._natural_rate() if args.ofe_rate is None else args.ofe_rate
        velocities = {"gofe": generalised(self.model, self.x), "ofe": lambda theta, w, gradient: rate * gradient}
        outputs = self.model(self.x).detach()
        schemes = {
            name: Scheme(self.start, self.origin, outputs, self.y, args.lr, velocities.get(name)) for name in SCHEMES
        }
        self.trainer = Evolution(self.model, self.x, self.y, args.lr, args.steps, schemes)

    def _natural_rate(self) -> float:
        outputs = self.model(self.x)
        w = loss_gradient(outputs, self.y)
        return natural_rate(OutputHessian(self.parameters, outputs, w), w)

    def measure(self) -> Row:
        """Columns of ``progress``, and how the schemes compare with gradient descent.

        The column collinearity is the correlation of w with y~, natural_rate the lambda of OFE that fits the network's
        next step best. Each scheme has SCHEME_loss (nats), and SCHEME_distance of its parameters from the network's,
        relative to how far these have come. For each layer, cka/LAYER and SCHEME_cka/LAYER are alignments with the
        labels; SCHEME_kernel_error/LAYER is the relative error of the kernel in Frobenius norm, and
        SCHEME_feature_error/LAYER the relative error of Psi_l y~.
        """
        theta, w = self.parameters.get(), loss_gradient(self.model(self.x), self.y)
        row = progress(self.trainer, self.dataset)
        row["collinearity"] = float((w * self.labels).sum() / w.norm() / self.labels.norm())
        row["natural_rate"] = self._natural_rate()
        schemes, way = self.trainer.schemes, (theta - self.origin).norm()
        for name, scheme in schemes.items():
            row[f"{name}_loss"] = float(functional.cross_entropy(scheme.outputs, self.y))
            row[f"{name}_distance"] = float((scheme.theta - theta).norm() / way) if way else 0.0

        now = TangentFeatures(self.model, self.x)
        features = now.product(self.labels)
        sizes = self.parameters.inner_products(features, features).sqrt()
        errors = {name: scheme.features(self.labels) - features for name, scheme in schemes.items()}
        shares = {
            name: (self.parameters.inner_products(error, error).sqrt() / sizes).tolist()
            for name, error in errors.items()
        }
        changes = [scheme.kernel_changes() for scheme in schemes.values()]  # made layer by layer: they are large
        for index, (layer, kernel) in enumerate(now.kernels.items()):
            true, start = kernel.to_dense(), self.start.kernels[layer].to_dense()
            row[f"cka/{layer}"] = alignment(true, self.labels)
            for name, change in zip(schemes, changes, strict=True):
                evolved = start + next(change)
                row[f"{name}_cka/{layer}"] = alignment(evolved, self.labels)
                row[f"{name}_kernel_error/{layer}"] = float((evolved - true).norm() / true.norm())
                row[f"{name}_feature_error/{layer}"] = shares[name][index]
        return row
