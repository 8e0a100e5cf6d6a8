"""Random networks of finite width: their information, kernels and alignment beside the limit of infinite width.

What takes long is measured by functions that return rows; others draw these, and fit to them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

import ahkernels as ah
from ahkernels.signal_propagation import InputPairs, Network
from experiments.common import data
from experiments.common.figures import Array, peak_of
from experiments.common.measuring import CENTERINGS
from experiments.common.models import feedforward, feedforward_on
from experiments.common.store import Row
from experiments.equilibrium import figure
from experiments.equilibrium.exponents import Fit, fitted
from experiments.equilibrium.figure import Curve, Panel, Sampled
from experiments.equilibrium.tables import Line, save, table

RELU = Network("relu")
INPUTS, INPUT_SIZE = 4, 64  # in the comparison of information
KERNEL_DEPTH, KERNEL_OUTPUTS, KERNEL_INPUTS = 6, 10, 16
ALIGNMENT_SEEDS = range(4)
KINDS = {  # of kernels, by their names in tables: outputs, centering and the words for them
    "per_output": ("all", "per_output", "over samples and outputs, each output centered"),
    "global": ("all", "global", "over samples and outputs, centered globally"),
    "trace": ("trace", "global", "summed over outputs"),
}


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


# ---- information


def information(args: argparse.Namespace) -> list[Line]:
    """Measure the information of random networks by layer; a line for each quantity, pair of inputs and layer."""
    x = inputs(args.epsilon, args.seed)
    make = partial(build, args.width, args.finite_depth)
    found = ah.signal_propagation.finite_width(make, x, args.draws, args.seed, sys.stderr.isatty())
    theory = ah.signal_propagation.propagate(RELU, InputPairs.of_inputs(x), args.finite_depth)
    quantities = {
        "forward": (theory.forward_information(), found.forward),
        "backward": (theory.backward_information(args.finite_depth), found.backward),
        "forward loss": (theory.forward_gamma, found.forward_loss),
    }
    return [
        {"quantity": quantity, "layer": layer, "first": i, "second": j, "theory": a, "mean": b, "error": c}
        for quantity, (expected, average) in quantities.items()
        for i in range(INPUTS)
        for j in range(i, INPUTS)
        for layer, (a, b, c) in enumerate(
            zip(*(v[:, i, j].tolist() for v in (expected, average.mean, average.standard_error)), strict=True), start=1
        )
    ]


def draw_information(args: argparse.Namespace, rows: Sequence[Line]) -> list[Sampled]:
    """Draw forward and backward information, and print how far off they are; returns the losses of three pairs."""
    correlation = 1 - InputPairs.of_inputs(inputs(args.epsilon, args.seed)).gamma

    def sampled(quantity: str, i: int, j: int) -> Sampled:
        of = [row for row in rows if (row["quantity"], row["first"], row["second"]) == (quantity, *sorted((i, j)))]
        values = (np.array([row[name] for row in of]) for name in ("theory", "mean", "error"))
        return Sampled(f"correlation {correlation[i, j]:.2f}".replace("-", "−"), *values)

    for quantity in ("forward", "backward"):
        theory, mean, error = (
            np.array([row[name] for row in rows if row["quantity"] == quantity]) for name in ("theory", "mean", "error")
        )
        certain = error <= 1e-6 * np.abs(theory).max()  # rounding alone sets apart what does not vary
        z = np.abs(mean - theory)[~certain] / error[~certain]
        print(
            f"width {args.width}, {args.draws} networks: largest |z| of {quantity} information {z.max():.1f} "
            f"of {len(z)} values, root mean square {math.sqrt((z**2).mean()):.2f}"
        )
    shown = {
        f"{quantity} information" + (" (times N)" if quantity == "backward" else ""): [
            sampled(quantity, i, j) for i, j in ((0, 0), (0, 1), (0, 3), (0, 2))
        ]
        for quantity in ("forward", "backward")
    }
    title = f"ReLU networks of width {args.width}, depth {args.finite_depth} at initialisation: means of {args.draws}"
    figure.finite_width(shown, title, args.output / "finite_width.png")
    return [sampled("forward loss", i, j) for i, j in ((0, 2), (0, 3), (0, 1))]


# ---- kernels


def kernel_errors(args: argparse.Namespace, width: int) -> list[Row]:
    """Measure how far tangent kernels of single random networks of a width are from their limit; one line."""
    x = torch.randn(KERNEL_INPUTS, INPUT_SIZE, generator=torch.Generator().manual_seed(args.seed))
    limit = ah.signal_propagation.layer_kernels(RELU, x, KERNEL_DEPTH).tangent()
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
    return [{"width": width, "error": float(by_layer.mean()), **layers}]


def draw_kernel_convergence(args: argparse.Namespace, rows: Sequence[Row]) -> list[Fit]:
    """Draw these distances against width, and fit a power law to them."""
    save(args.output, "kernel_convergence", rows)
    widths, means = (np.array([row[name] for row in rows], dtype=np.float64) for name in ("width", "error"))
    fit = fitted("tangent kernels at finite width", "N", -0.5, widths, means)
    line = np.exp(np.mean(np.log(means * widths**0.5))) * widths**-0.5
    curves = [Curve(f"mean over layers\n{fit.legend}", widths, means, line, "slope −1/2 of theory")]
    panel = Panel(
        f"means of {args.kernel_draws} networks of depth {KERNEL_DEPTH} for each width, {KERNEL_INPUTS} random inputs",
        "width N (units of a hidden layer)",
        "relative distance from the limit (Frobenius)",
        curves,
    )
    figure.power_laws(
        [panel],
        "Distance of the tangent kernels of ReLU networks at initialisation from their limit",
        args.output / "kernel_convergence.png",
    )
    return [fit]


# ---- alignment at initialisation


def predicted_alignment(args: argparse.Namespace, dataset: data.Dataset, depth: int) -> dict[str, Array]:
    """The alignment at infinite width by layer at initialisation, [L], by the names of KINDS."""
    x, y = data.probe(dataset, args.probe_size, args.seed)
    limit = ah.signal_propagation.layer_kernels(RELU, x, depth)
    one_hot = torch.nn.functional.one_hot(y, dataset.classes).double()
    return {
        kind: limit.alignment(one_hot, outputs, centering=centering).cka.numpy()
        for kind, (outputs, centering, _) in KINDS.items()
    }


def initial_alignment(args: argparse.Namespace, dataset: data.Dataset, width: int) -> list[Row]:
    """Measure the alignment of random networks of a width; a line for each layer, columns for each kind and seed."""
    x, y = data.probe(dataset, args.probe_size, args.seed)
    columns: dict[str, Array] = {"layer": np.arange(1, args.finite_depth + 1)}
    for seed in alignment_seeds(args):
        model = feedforward_on(dataset, width, args.finite_depth, seed)
        found = {
            outputs: ah.layerwise_alignment(model, x, y, outputs=outputs, centering=CENTERINGS, precision="highest")
            for outputs in ("all", "trace")
        }
        columns |= {
            f"{kind}_seed_{seed}": found[outputs][centering].cka.numpy()
            for kind, (outputs, centering, _) in KINDS.items()
        }
    return table(**columns)


def alignment_seeds(args: argparse.Namespace) -> list[int]:
    """The seeds of the networks of each width."""
    return [args.seed + k for k in ALIGNMENT_SEEDS]


def draw_initial_alignment(args: argparse.Namespace, dataset: data.Dataset, of_widths: Mapping[int, list[Row]]) -> None:
    """Compare these alignments, by width, with the limit's."""
    predicted, seeds = predicted_alignment(args, dataset, args.finite_depth), alignment_seeds(args)
    panels: dict[str, tuple[Array, dict[int, Array]]] = {}
    columns: dict[str, Array] = {"layer": np.arange(1, args.finite_depth + 1)}
    for kind, (_, _, heading) in KINDS.items():
        found = {
            width: np.array([[row[f"{kind}_seed_{seed}"] for row in rows] for seed in seeds])
            for width, rows in of_widths.items()
        }
        panels[heading] = predicted[kind], found
        columns[f"predicted_{kind}"] = predicted[kind]
        for width, by_seed in found.items():
            columns |= {f"{kind}_width_{width}_seed_{seed}": by_seed[k] for k, seed in enumerate(seeds)}
            mean = by_seed.mean(axis=0)
            print(
                f"alignment at initialisation, kernels {heading}, width {width}: within "
                f"{np.abs(mean - predicted[kind]).max():.4f} of the limit's; peak at layer {peak_of(mean)[0]} "
                f"(limit: {peak_of(predicted[kind])[0]})"
            )
    save(args.output, "initial_alignment", table(**columns))
    title = (
        f"{args.dataset}, {args.probe_size:,} images: ReLU networks of depth {args.finite_depth}, "
        f"means and ranges of {len(seeds)} seeds"
    )
    figure.alignment(panels, title, args.output / "initial_alignment.png")
