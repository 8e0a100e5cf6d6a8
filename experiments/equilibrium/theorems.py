"""Theorems 1 and 2 and corollary 1 on networks of infinite width, over four decades of depth.

What takes long is computed by functions that return rows; others draw these, and fit to them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np

import ahkernels as ah
from ahkernels.signal_propagation import InputPairs, Network
from experiments.common.store import Row
from experiments.equilibrium import figure
from experiments.equilibrium.exponents import FAR, Fit, fitted, measured, slow
from experiments.equilibrium.figure import Curve, Panel, Sampled
from experiments.equilibrium.tables import Line, columns, save, table

RELU = Network("relu")
DEPTHS = np.unique(np.round(np.geomspace(1e3, 1e7, 33)).astype(np.int64))
LEAST_LAYERWISE = 100  # depth of networks without a step of many layers at a time
LAYERS_SHOWN = np.unique(np.round(np.geomspace(1, 1e7, 141)).astype(np.int64))
ALPHAS = (0.25, 0.5, 0.75)
SHALLOW_EXPONENT = 0.5  # case 2 of theorem 2: l = L^0.5
RESIDUAL_SCALES = (1.0, 0.5)
TANH_BIAS = 0.05


def exact(fits: Sequence[Fit]) -> str:
    """What a figure must say of the errors of its fits."""
    remark = "\n" + f"* theory lies over {FAR} of them off: at these depths the form lacks terms"
    return "values are exact, errors are of the fitted form" + (remark if any(fit.mark for fit in fits) else "")


def residual(scale: float) -> Network:
    """A ReLU network of residual branches with this scale."""
    return Network("relu", branch_scale=scale)


def theorem1(args: argparse.Namespace) -> list[Row]:
    """Compute the loss of forward information against layer."""
    layers = np.union1d(LAYERS_SHOWN, DEPTHS)
    losses = ah.signal_propagation.information_loss(
        RELU, int(layers[-1]), InputPairs.apart(args.epsilon), layers=layers
    )
    law = ah.signal_propagation.asymptotics(RELU)
    theory = law.forward_constant * layers**law.forward_exponent
    return table(layer=layers, forward_loss=losses.forward, theory=theory)


def draw_theorem1(args: argparse.Namespace, rows: Sequence[Row], sampled: Sequence[Sampled]) -> list[Fit]:
    """Draw this loss, fit a power law to it, and draw the losses of random networks beside it."""
    save(args.output, "theorem1", rows)
    layers, losses, theory = columns(rows, "layer", "forward_loss", "theory")
    far = np.isin(layers, DEPTHS)
    law = ah.signal_propagation.asymptotics(RELU)
    fit = fitted("theorem 1: forward loss", "l", law.forward_exponent, layers[far], losses[far], slow(layers[far]))
    curve = Curve(f"sup over inputs\n{fit.legend}", layers, losses, theory, "theory: (9π²/2) / l²", points=False)
    panel = Panel("infinite width (slopes from l = 10³ on)", "layer l", "loss of forward information", [curve])
    title = f"Theorem 1, ReLU: correlations up to {1 - args.epsilon:g}\n{exact([fit])}"
    figure.power_laws([panel], title, args.output / "theorem1.png", sampled)
    return [fit]


def theorem2(args: argparse.Namespace) -> list[Row]:
    """Compute backward information against depth, for layers in proportion to the depth and for shallow ones."""
    rows = []
    pairs = InputPairs.apart(args.epsilon)
    for depth in DEPTHS.tolist():
        shallow = round(depth**SHALLOW_EXPONENT)
        inner = {alpha: math.floor(alpha * depth) for alpha in ALPHAS}
        losses = ah.signal_propagation.information_loss(RELU, depth, pairs, layers=np.array([shallow, *inner.values()]))
        found = dict(zip(losses.layers.tolist(), losses.backward.tolist(), strict=True))
        row: Row = {"depth": depth}
        for alpha, layer in inner.items():
            row[f"backward_{alpha:g}"] = found[layer]
            row[f"deviation_{alpha:g}"] = abs(found[layer] - alpha**3)
            row[f"theory_{alpha:g}"] = alpha**3 * 4.5 * (1 / alpha - 1) * math.log(depth) / depth
        rows.append(row | {"shallow_layer": shallow, "fall": depth / shallow, "backward_shallow": found[shallow]})
    return rows


def draw_theorem2(args: argparse.Namespace, rows: Sequence[Row]) -> list[Fit]:
    """Draw this information, and fit power laws to it."""
    save(args.output, "theorem2", rows)
    depths, shallow, falls, ratio = columns(rows, "depth", "shallow_layer", "fall", "backward_shallow")
    fits, curves, log = [], [], np.log(depths)
    for alpha in ALPHAS:
        deviation, theory = columns(rows, f"deviation_{alpha:g}", f"theory_{alpha:g}")
        name = f"theorem 2, case 1: l = {alpha:g} L"
        fits.append(fitted(name, "L", -1.0, depths, deviation / log, [1 / log]))
        curves.append(
            Curve(f"α = {alpha:g}: slope {measured(fits[-1].best)}{fits[-1].mark}", depths, deviation, theory)
        )
    exponent = ah.signal_propagation.asymptotics(RELU).backward_exponent
    # l is the smaller of the two: the corrections are in it.
    fits.append(fitted("theorem 2, case 2: l = L^0.5", "L / l", exponent, falls, ratio, slow(shallow)))
    curve = Curve(fits[-1].legend, falls, ratio, falls**exponent, "theory: (L / l)⁻³")
    first = Panel(
        "case 1: l = αL; dashed: 4.5 α³ (1/α − 1) log L / L, without terms in 1/L",
        "depth L",
        "|backward information − α³|",
        curves,
    )
    second = Panel("case 2: l = √L", "L / l", "backward information", [curve])
    title = (
        f"Theorem 2, ReLU: correlations up to {1 - args.epsilon:g}; slopes in (a) are of the deviation over log L\n"
        f"{exact(fits)}"
    )
    figure.power_laws([first, second], title, args.output / "theorem2.png")
    return fits


NETWORKS: dict[str, tuple[str, Network | None]] = {  # None: branches times L^(-1/2), another network at each depth
    "relu": ("ReLU", RELU),
    **{f"residual_{s:g}": (f"residual ReLU, scale {s:g}", residual(s)) for s in RESIDUAL_SCALES},
    "residual_L^-0.5": ("residual ReLU, scale 1/√L", None),
    "tanh": (f"tanh, bias variance {TANH_BIAS:g}", Network("tanh", bias_variance=TANH_BIAS)),
}


LAYERWISE = ("residual_L^-0.5", "tanh")  # computed layer by layer


def corollary1(args: argparse.Namespace) -> list[Line]:
    """Compute the layer of balance against depth, also for residual networks and one with a smooth activation."""
    layerwise = np.unique(np.round(np.geomspace(LEAST_LAYERWISE, args.layerwise_depth, 17)).astype(np.int64))
    rows: list[Line] = []
    pairs = InputPairs.apart(args.epsilon)
    for name, (_, network) in NETWORKS.items():
        depths = layerwise if name in LAYERWISE else DEPTHS
        if network is None:
            balance = [
                float(ah.signal_propagation.equilibrium(residual(depth**-0.5), depth, pairs)[0])
                for depth in depths.tolist()
            ]
            theory = [math.nan] * len(depths)
        else:
            balance = ah.signal_propagation.equilibrium(network, depths, pairs).tolist()
            law = ah.signal_propagation.asymptotics(network)
            theory = (law.equilibrium_constant * depths.astype(np.float64) ** law.equilibrium_exponent).tolist()
        rows += [
            {"network": name, "depth": depth, "equilibrium": layer, "theory": line}
            for depth, layer, line in zip(depths.tolist(), balance, theory, strict=True)
        ]
    return rows


def draw_corollary1(args: argparse.Namespace, rows: Sequence[Line]) -> list[Fit]:
    """Draw these layers, and fit power laws to them."""
    save(args.output, "corollary1", rows)
    fits, curves = [], []
    for name, (label, network) in NETWORKS.items():
        x, balance, theory = columns([row for row in rows if row["network"] == name], "depth", "equilibrium", "theory")
        known = np.isfinite(balance)
        if known.sum() < 6:
            print(f"{label}: no balance at {len(known) - known.sum()} of {len(known)} depths, and no fit")
            continue
        # Without a single network there is a limit in l / L.
        exponent = 1.0 if network is None else ah.signal_propagation.asymptotics(network).equilibrium_exponent
        u = x[known] ** exponent  # as the layer grows
        fits.append(fitted(f"corollary 1: {label}", "L", exponent, x[known], balance[known], slow(u)))
        legend = fits[-1].legend.replace("\n", "\n    ")
        known_theory = None if network is None else theory
        curves.append(Curve(f"{label}: {legend}, theory {exponent:.3g}", x, balance, known_theory))
    panel = Panel("dashed: theory", "depth L (layers)", "equilibrium layer l*", curves, legend="below")
    title = f"Corollary 1: correlations up to {1 - args.epsilon:g}\n{exact(fits)}"
    figure.power_laws([panel], title, args.output / "corollary1.png")
    return fits
