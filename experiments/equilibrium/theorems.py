"""Theorems 1 and 2 and corollary 1 on networks of infinite width, over four decades of depth."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np

import ahkernels as ah
from ahkernels.signal_propagation import InputPairs, Network
from experiments.common.figures import Array
from experiments.equilibrium import figure
from experiments.equilibrium.exponents import Fit, fitted, measured, slow
from experiments.equilibrium.figure import Curve, Panel, Sampled
from experiments.equilibrium.tables import save, table

RELU = Network("relu")
DEPTHS = np.unique(np.round(np.geomspace(1e3, 1e7, 33)).astype(np.int64))
LEAST_LAYERWISE = 100  # depth of networks without a step of many layers at a time
LAYERS_SHOWN = np.unique(np.round(np.geomspace(1, 1e7, 141)).astype(np.int64))
ALPHAS = (0.25, 0.5, 0.75)
SHALLOW_EXPONENT = 0.5  # case 2 of theorem 2: l = L^0.5
RESIDUAL_SCALES: tuple[float | str, ...] = (1.0, 0.5, "L^-0.5")
TANH_BIAS = 0.05


def theorem1(args: argparse.Namespace, sampled: Sequence[Sampled]) -> list[Fit]:
    """Compute the loss of forward information against layer."""
    layers = np.union1d(LAYERS_SHOWN, DEPTHS)
    losses = ah.signal_propagation.information_loss(
        RELU, int(layers[-1]), InputPairs.apart(args.epsilon), layers=layers
    )
    law = ah.signal_propagation.asymptotics(RELU)
    theory = law.forward_constant * layers**law.forward_exponent
    save(args.output, "theorem1", table(layer=layers, forward_loss=losses.forward, theory=theory))
    far = np.isin(layers, DEPTHS)
    x, y = layers[far].astype(np.float64), losses.forward[far]
    fit = fitted("theorem 1: forward loss", "l", law.forward_exponent, x, y, slow(x))
    curve = Curve(
        f"sup over inputs\n{fit.legend}",
        layers,
        losses.forward,
        theory,
        "theory: (9π²/2) / l²",
        points=False,
    )
    panel = Panel("infinite width (slopes from l = 10³ on)", "layer l", "loss of forward information", [curve])
    title = f"Theorem 1, ReLU: correlations up to {1 - args.epsilon:g}"
    figure.power_laws([panel], title, args.output / "theorem1.png", sampled)
    return [fit]


def theorem2(args: argparse.Namespace) -> list[Fit]:
    """Compute backward information against depth, for layers in proportion to the depth and for shallow ones."""
    depths = DEPTHS.astype(np.float64)
    shallow = np.round(depths**SHALLOW_EXPONENT).astype(np.int64)
    inner = {alpha: np.floor(alpha * depths).astype(np.int64) for alpha in ALPHAS}
    backward = {alpha: np.empty(len(depths)) for alpha in ALPHAS}
    ratio = np.empty(len(depths))
    pairs = InputPairs.apart(args.epsilon)
    for i, depth in enumerate(DEPTHS):
        layers = np.array([shallow[i], *(inner[alpha][i] for alpha in ALPHAS)])
        losses = ah.signal_propagation.information_loss(RELU, int(depth), pairs, layers=layers)
        found = dict(zip(losses.layers.tolist(), losses.backward.tolist(), strict=True))
        ratio[i] = found[int(shallow[i])]
        for alpha in ALPHAS:
            backward[alpha][i] = found[int(inner[alpha][i])]
    fits, curves = [], []
    columns: dict[str, Array] = {}
    for alpha in ALPHAS:
        deviation = np.abs(backward[alpha] - alpha**3)
        theory = alpha**3 * 4.5 * (1 / alpha - 1) * np.log(depths) / depths
        columns |= {f"backward_{alpha:g}": backward[alpha], f"deviation_{alpha:g}": deviation}
        columns |= {f"theory_{alpha:g}": theory}
        name, log = f"theorem 2, case 1: l = {alpha:g} L", np.log(depths)
        fits.append(fitted(name, "L", -1.0, depths, deviation / log, [1 / log]))
        curves.append(Curve(f"α = {alpha:g}: slope {measured(fits[-1].best)}", depths, deviation, theory))
    falls, law = depths / shallow, ah.signal_propagation.asymptotics(RELU)
    # l is the smaller of the two: the corrections are in it.
    name, corrections = "theorem 2, case 2: l = L^0.5", slow(shallow.astype(np.float64))
    fits.append(fitted(name, "L / l", law.backward_exponent, falls, ratio, corrections))
    curve = Curve(fits[-1].legend, falls, ratio, falls**law.backward_exponent, "theory: (L / l)⁻³")
    save(
        args.output,
        "theorem2",
        table(depth=DEPTHS, **columns, shallow_layer=shallow, fall=falls, backward_shallow=ratio),
    )
    first = Panel(
        "case 1: l = αL; dashed: 4.5 α³ (1/α − 1) log L / L", "depth L", "|backward information − α³|", curves
    )
    second = Panel("case 2: l = √L", "L / l", "backward information", [curve])
    title = f"Theorem 2, ReLU: correlations up to {1 - args.epsilon:g}; slopes in (a) are of the deviation over log L"
    figure.power_laws([first, second], title, args.output / "theorem2.png")
    return fits


def corollary1(args: argparse.Namespace) -> list[Fit]:
    """Compute the layer of balance against depth, also for residual networks and one with a smooth activation."""
    layerwise = np.unique(np.round(np.geomspace(LEAST_LAYERWISE, args.layerwise_depth, 17)).astype(np.int64))
    kinds: list[tuple[str, str, Array, Network | None]] = [("relu", "ReLU", DEPTHS, RELU)]
    for scale in RESIDUAL_SCALES:
        if isinstance(scale, float):
            kinds.append((f"residual_{scale:g}", f"residual ReLU, scale {scale:g}", DEPTHS, residual(scale)))
        else:
            kinds.append((f"residual_{scale}", f"residual ReLU, scale {scale}", layerwise, None))
    tanh = Network("tanh", bias_variance=TANH_BIAS)
    kinds.append(("tanh", f"tanh, bias variance {TANH_BIAS:g}", layerwise, tanh))
    fits, curves, rows = [], [], []
    pairs = InputPairs.apart(args.epsilon)
    for name, label, depths, network in kinds:
        x = depths.astype(np.float64)
        theory, exponent = None, math.nan
        if network is None:
            balance = np.concatenate(
                [
                    ah.signal_propagation.equilibrium(residual(float(depth) ** -0.5), int(depth), pairs)
                    for depth in depths
                ]
            )
            exponent = 1.0  # the network has a limit in l / L
        else:
            balance = ah.signal_propagation.equilibrium(network, depths, pairs)
            law = ah.signal_propagation.asymptotics(network)
            exponent = law.equilibrium_exponent
            theory = law.equilibrium_constant * x**exponent
        known = np.isfinite(balance)
        for depth, layer, line in zip(depths, balance, x * math.nan if theory is None else theory, strict=True):
            rows.append({"network": name, "depth": int(depth), "equilibrium": layer, "theory": line})
        if known.sum() < 6:
            print(f"{label}: no balance at {len(known) - known.sum()} of {len(known)} depths, and no fit")
            continue
        u = x[known] ** exponent  # as the layer grows
        fits.append(fitted(f"corollary 1: {label}", "L", exponent, x[known], balance[known], slow(u)))
        legend = fits[-1].legend.replace("\n", "\n    ")
        curves.append(Curve(f"{label}: {legend}, theory {exponent:.3g}", x, balance, theory))
    save(args.output, "corollary1", rows)
    panel = Panel("dashed: theory", "depth L", "layer of balance l*", curves, legend="below")
    title = f"Corollary 1: correlations up to {1 - args.epsilon:g}"
    figure.power_laws([panel], title, args.output / "corollary1.png")
    return fits


def residual(scale: float) -> Network:
    """A ReLU network of residual branches with this scale."""
    return Network("relu", branch_scale=scale)
