"""Random networks of finite width: their information, kernels and alignment beside the limit of infinite width."""

from __future__ import annotations

import argparse
import math
import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ahkernels as ah
from ahkernels.signal_propagation import InputPairs, Network
from experiments.common import data
from experiments.common.figures import Array
from experiments.common.models import feedforward, feedforward_on
from experiments.common.store import Row
from experiments.equilibrium import figure
from experiments.equilibrium.exponents import Fit, fitted
from experiments.equilibrium.figure import Curve, Panel, Sampled
from experiments.equilibrium.tables import save, table

RELU = Network("relu")
INPUTS, INPUT_SIZE = 4, 64  # in the comparison of information
KERNEL_DEPTH, KERNEL_OUTPUTS, KERNEL_INPUTS = 6, 10, 16
ALIGNMENT_SEEDS = range(4)
OUTPUTS = {"all": "over samples and outputs", "trace": "summed over outputs"}


def inputs(epsilon: float, seed: int) -> Tensor:
    """Inputs [n, d] with |x|^2 = d: two with correlation 1 - epsilon, one opposite to the first, and random ones."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(INPUTS, INPUT_SIZE, generator=generator, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True)
    across = x[1] - (x[0] @ x[1]) * x[0]
    correlation = 1 - epsilon
    x[1] = correlation * x[0] + math.sqrt(1 - correlation**2) * across / across.norm()
    x[2] = -x[0]
    return (x * math.sqrt(INPUT_SIZE)).float()


def build(width: int, depth: int, seed: int) -> torch.nn.Sequential:
    """A random network with one output for ``inputs``."""
    return feedforward(INPUT_SIZE, width, depth, 1, seed)


def finite_width(args: argparse.Namespace) -> list[Sampled]:
    """Measure the information of random networks by layer; returns the forward losses of three pairs."""
    x = inputs(args.epsilon, args.seed)
    make = partial(build, args.width, args.finite_depth)
    found = ah.signal_propagation.finite_width(make, x, args.draws, args.seed, sys.stderr.isatty())
    pairs = InputPairs.of_inputs(x)
    theory = ah.signal_propagation.propagate(RELU, pairs, args.finite_depth)
    expected = {"forward": theory.forward_information(), "backward": theory.backward_information(args.finite_depth)}
    averages = {"forward": found.forward, "backward": found.backward}
    rows: list[Row | dict[str, Any]] = []
    shown: dict[str, list[Sampled]] = {}
    chosen = [(0, 0), (0, 1), (0, 3), (0, 2)]
    for quantity, average in averages.items():
        # Rounding alone sets apart what does not vary.
        certain = average.standard_error <= 1e-6 * np.abs(expected[quantity]).max()
        distance = np.abs(average.mean - expected[quantity])
        z = np.divide(distance, average.standard_error, out=np.zeros(certain.shape), where=~certain)
        where = np.unravel_index(z.argmax(), z.shape)
        print(
            f"width {args.width}, {args.draws} networks: largest |z| of {quantity} information {z.max():.1f} "
            f"(layer {where[0] + 1}), root mean square {math.sqrt((z[~certain] ** 2).mean()):.2f}"
        )
        for i in range(INPUTS):
            for j in range(i, INPUTS):
                values = (expected[quantity], average.mean, average.standard_error)
                for layer, (a, b, c) in enumerate(zip(*(v[:, i, j] for v in values), strict=True), start=1):
                    row = {"quantity": quantity, "layer": layer, "first": i, "second": j}
                    rows.append(row | {"theory": a, "mean": b, "error": c})
        shown[f"{quantity} information" + (" (times N)" if quantity == "backward" else "")] = [
            Sampled(
                f"correlation {1 - pairs.gamma[i, j]:.2f}",
                expected[quantity][:, i, j],
                average.mean[:, i, j],
                average.standard_error[:, i, j],
            )
            for i, j in chosen
        ]
    save(args.output, "finite_width", rows)
    title = f"Random ReLU networks, width {args.width}, depth {args.finite_depth}: means of {args.draws}"
    figure.finite_width(shown, title, args.output / "finite_width.png")
    return [
        Sampled(
            f"correlation {1 - pairs.gamma[i, j]:.2f}",
            theory.forward_gamma[:, i, j],
            found.forward_loss.mean[:, i, j],
            found.forward_loss.standard_error[:, i, j],
        )
        for i, j in ((0, 2), (0, 3), (0, 1))
    ]


def kernel_convergence(args: argparse.Namespace) -> list[Fit]:
    """Measure how far tangent kernels of single random networks are from their limit, against width."""
    x = torch.randn(KERNEL_INPUTS, INPUT_SIZE, generator=torch.Generator().manual_seed(args.seed))
    limit = ah.signal_propagation.layer_kernels(RELU, x, KERNEL_DEPTH).tangent()
    rows: list[Row] = []
    for width in sorted(args.widths):
        errors = []
        for draw in range(args.kernel_draws):
            model = feedforward(INPUT_SIZE, width, KERNEL_DEPTH, KERNEL_OUTPUTS, args.seed + draw)
            kernels = ah.tangent_kernels(model, x, outputs="trace", precision="highest")
            fans = [layer.in_features for layer in model if isinstance(layer, torch.nn.Linear)]
            found = [
                kernel.to_dense().double().numpy() / KERNEL_OUTPUTS / fan_in
                for kernel, fan_in in zip(kernels.values(), fans, strict=True)
            ]
            errors.append([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, limit, strict=True)])
        by_layer = np.mean(errors, axis=0)
        layers = {f"error/layer{layer}": float(value) for layer, value in enumerate(by_layer, start=1)}
        rows.append({"width": width, "error": float(by_layer.mean()), **layers})
    save(args.output, "kernel_convergence", rows)
    widths, means = (np.array([row[name] for row in rows], dtype=np.float64) for name in ("width", "error"))
    fit = fitted("tangent kernels at finite width", "N", -0.5, widths, means)
    line = np.exp(np.mean(np.log(means * widths**0.5))) * widths**-0.5
    curves = [Curve(f"mean over layers\n{fit.legend}", widths, means, line, "slope −1/2")]
    panel = Panel(
        f"{args.kernel_draws} networks of depth {KERNEL_DEPTH} a width, {KERNEL_INPUTS} inputs",
        "width N",
        "relative distance from the limit (Frobenius)",
        curves,
    )
    figure.power_laws([panel], "Tangent kernels approach their limit", args.output / "kernel_convergence.png")
    return [fit]


def initial_alignment(args: argparse.Namespace, dataset: data.Dataset) -> None:
    """Compare the alignment of random networks with the limit's, by layer at initialisation."""
    x, y = data.probe(dataset, args.probe_size, args.seed)
    limit = ah.signal_propagation.layer_kernels(RELU, x, args.finite_depth)
    one_hot = torch.nn.functional.one_hot(y, dataset.classes).double()
    seeds = [args.seed + k for k in ALIGNMENT_SEEDS]
    found: dict[str, dict[int, Array]] = {outputs: {} for outputs in OUTPUTS}
    for width in sorted(args.alignment_widths):
        values = []
        for seed in seeds:
            model = feedforward_on(dataset, width, args.finite_depth, seed)
            reports = (ah.layerwise_alignment(model, x, y, outputs=outputs, precision="highest") for outputs in OUTPUTS)
            values.append([report.cka.numpy() for report in reports])
        for outputs, of_seeds in zip(OUTPUTS, zip(*values, strict=True), strict=True):
            found[outputs][width] = np.stack(of_seeds)
    panels: dict[str, tuple[Array, dict[int, Array]]] = {}
    columns: dict[str, Array] = {"layer": np.arange(1, args.finite_depth + 1)}
    for outputs, heading in OUTPUTS.items():
        predicted = limit.alignment(one_hot, outputs).cka.numpy()
        panels[heading] = predicted, found[outputs]
        columns[f"predicted_{outputs}"] = predicted
        for width, by_seed in found[outputs].items():
            columns |= {f"{outputs}_width_{width}_seed_{seed}": by_seed[k] for k, seed in enumerate(seeds)}
            gap = np.abs(by_seed.mean(axis=0) - predicted).max()
            print(f"alignment at initialisation, {heading}, width {width}: within {gap:.4f} of the limit's")
    save(args.output, "initial_alignment", table(**columns))
    title = f"{args.dataset}, {len(y):,} images: ReLU networks of depth {args.finite_depth}, {len(seeds)} seeds"
    figure.alignment(panels, title, args.output / "initial_alignment.png")
