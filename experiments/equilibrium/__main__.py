"""Loss of forward and backward information at large depth, and the layer where they balance, from theory.

Checks theorems 1 and 2 and corollary 1 of the paper on networks of infinite width, by exponents fitted over four
decades of depth; then random networks of finite width: their information by layer, how their tangent kernels approach
the limit, and the alignment with labels that it predicts at initialisation. Nothing is trained.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import ahkernels as ah
from ahkernels.signal_propagation import InputPairs, Network, PowerLaw, fit_power_law
from experiments.common import command_line, data, figures
from experiments.common.figures import Array
from experiments.common.models import feedforward
from experiments.common.running import say
from experiments.common.store import Row, csv_of, describe_environment, json_of, make_folder, write_atomically
from experiments.equilibrium import figure
from experiments.equilibrium.figure import Curve, Panel, Sampled

RELU = Network("relu")
DEPTHS = np.unique(np.round(np.geomspace(1e3, 1e7, 33)).astype(np.int64))
LEAST_LAYERWISE = 100  # depth of networks without a step of many layers at a time
LAYERS_SHOWN = np.unique(np.round(np.geomspace(1, 1e7, 141)).astype(np.int64))
ALPHAS = (0.25, 0.5, 0.75)
SHALLOW_EXPONENT = 0.5  # case 2 of theorem 2: l = L^0.5
RESIDUAL_SCALES: tuple[float | str, ...] = (1.0, 0.5, "L^-0.5")
TANH_BIAS = 0.05
INPUTS, INPUT_SIZE = 4, 64  # of the comparison with random networks
KERNEL_DEPTH, KERNEL_OUTPUTS, KERNEL_INPUTS = 6, 10, 16
ALIGNMENT_SEEDS = range(4)
OUTPUTS = {"all": "over samples and outputs", "trace": "summed over outputs"}


class Fit(NamedTuple):
    """An exponent fitted to a curve, beside theory's; nan where theory has none."""

    name: str
    variable: str
    theory: float
    plain: PowerLaw
    corrected: PowerLaw | None

    @property
    def best(self) -> PowerLaw:
        """With corrections where there are any."""
        return self.corrected or self.plain

    @property
    def legend(self) -> str:
        """Both exponents."""
        corrected = f"\nwith corrections {measured(self.corrected)}" if self.corrected else ""
        return f"slope {measured(self.plain)}{corrected}"


def fitted(name: str, variable: str, theory: float, x: Array, y: Array, corrections: Sequence[Array] = ()) -> Fit:
    """A power law without and, if there are any, with corrections."""
    corrected = fit_power_law(x, y, corrections) if corrections else None
    return Fit(name, variable, theory, fit_power_law(x, y), corrected)


# ---- command line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.command_line(__doc__)
    command_line.add(p, "--dataset", help="for the alignment at initialisation")
    command_line.add(p, "--data-dir", "--train-size")
    command_line.add(p, "--probe-size", help="training samples to align on, stratified; time grows as n squared")
    p.add_argument(
        "--epsilon",
        type=command_line.real("a number in (0, 1)", lambda value: 0 < value < 1),
        default=0.1,
        help="of the set of inputs: correlations of at most 1 - epsilon",
    )
    command_line.add(p, "--width", help="units of a hidden layer of the random networks")
    p.add_argument(
        "--finite-depth", type=command_line.whole(2), default=20, metavar="L", help="linear layers of random networks"
    )
    p.add_argument(
        "--draws", type=command_line.whole(4), default=16, metavar="K", help="random networks to average over"
    )
    p.add_argument(
        "--widths",
        type=command_line.whole(1),
        nargs="+",
        default=[64, 128, 256, 512, 1024],
        metavar="N",
        help="of the networks whose kernels are compared with the limit",
    )
    p.add_argument(
        "--alignment-widths",
        type=command_line.whole(1),
        nargs="+",
        default=[64, 256, 1024],
        metavar="N",
        help="of the networks whose alignment at initialisation is compared with the limit's",
    )
    p.add_argument("--kernel-draws", type=command_line.whole(1), default=24, metavar="K", help="networks of each width")
    p.add_argument(
        "--layerwise-depth",
        type=command_line.whole(2 * LEAST_LAYERWISE),
        default=10_000,
        metavar="L",
        help="greatest depth of networks that are computed layer by layer, in a time that grows as L",
    )
    command_line.add(p, "--seed", help="of inputs, weights and subsets")
    p.add_argument("--output", type=Path, default=Path("runs/equilibrium"), help="folder for the results")
    command_line.add(p, "--threads")
    return p


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; exits with a message that names the option if a value is wrong."""
    p = parser()
    args = p.parse_args(arguments)
    command_line.require_data_dir(p, args)
    command_line.require_distinct(p, args, "--widths", "--alignment-widths")
    if len(args.widths) < 3:
        p.error(f"argument --widths: expected at least 3 numbers, to fit a slope, got {len(args.widths)}")
    return args


# ---- results


def save(output: Path, name: str, rows: Sequence[Row | dict[str, Any]]) -> None:
    """A table, as NAME.csv."""
    write_atomically(output / f"{name}.csv", csv_of(rows))


def table(**columns: Any) -> list[Row]:
    """Columns [k] as k rows."""
    return [
        dict(zip(columns, line, strict=True))
        for line in zip(*(np.asarray(c).tolist() for c in columns.values()), strict=True)
    ]


def measured(law: PowerLaw) -> str:
    """An exponent with its error, which has one digit."""
    error = max(law.exponent_error, 1e-9)
    digits = min(9, max(2, -math.floor(math.log10(error))))
    return f"{law.exponent:.{digits}f} ± {error:.0e}" if error < 1e-4 else f"{law.exponent:.{digits}f} ± {error:.1g}"


def slow(x: Array) -> list[Array]:
    """The terms by which the logarithm of a power of x is off (lemma 2)."""
    return [np.log(x) / x, 1 / x]


def constant(law: PowerLaw) -> str:
    """The constant of a power law with its error."""
    return f"{law.constant:.4g} ± {law.constant_error:.1g}"


# ---- infinite width


def theorem1(args: argparse.Namespace, sampled: Sequence[Sampled]) -> list[Fit]:
    """Loss of forward information against layer."""
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
    figure.power_laws([panel], title, figures.files(args.output, "theorem1"), sampled)
    return [fit]


def theorem2(args: argparse.Namespace) -> list[Fit]:
    """Backward information against depth, for layers in proportion to it and for shallow ones."""
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
    figure.power_laws([first, second], title, figures.files(args.output, "theorem2"))
    return fits


def corollary1(args: argparse.Namespace) -> list[Fit]:
    """The layer of balance against depth, also of residual networks and one with a smooth activation."""
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
    figure.power_laws([panel], title, figures.files(args.output, "corollary1"))
    return fits


def residual(scale: float) -> Network:
    """A ReLU network of residual branches with this scale."""
    return Network("relu", branch_scale=scale)


# ---- finite width


def inputs(epsilon: float, seed: int) -> Tensor:
    """Inputs of |x|^2 = d: two with correlation 1 - epsilon, one opposite to the first, and random ones, [n, d]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(INPUTS, INPUT_SIZE, generator=generator, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True)
    across = x[1] - (x[0] @ x[1]) * x[0]
    correlation = 1 - epsilon
    x[1] = correlation * x[0] + math.sqrt(1 - correlation**2) * across / across.norm()
    x[2] = -x[0]
    return (x * math.sqrt(INPUT_SIZE)).float()


def build(width: int, depth: int, seed: int) -> torch.nn.Sequential:
    """A random network of one output for `inputs`."""
    return feedforward(INPUT_SIZE, width, depth, 1, seed)


def finite_width(args: argparse.Namespace) -> list[Sampled]:
    """Information of random networks by layer; returns the losses of forward information of three pairs."""
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
        certain = average.error <= 1e-6 * np.abs(expected[quantity]).max()
        z = np.divide(
            np.abs(average.mean - expected[quantity]), average.error, out=np.zeros(certain.shape), where=~certain
        )
        where = np.unravel_index(z.argmax(), z.shape)
        print(
            f"width {args.width}, {args.draws} networks: largest |z| of {quantity} information {z.max():.1f} "
            f"(layer {where[0] + 1}), root mean square {math.sqrt((z[~certain] ** 2).mean()):.2f}"
        )
        for i in range(INPUTS):
            for j in range(i, INPUTS):
                values = (expected[quantity], average.mean, average.error)
                for layer, (a, b, c) in enumerate(zip(*(v[:, i, j] for v in values), strict=True), start=1):
                    row = {"quantity": quantity, "layer": layer, "first": i, "second": j}
                    rows.append(row | {"theory": a, "mean": b, "error": c})
        shown[f"{quantity} information" + (" (times N)" if quantity == "backward" else "")] = [
            Sampled(
                f"correlation {1 - pairs.gamma[i, j]:.2f}",
                expected[quantity][:, i, j],
                average.mean[:, i, j],
                average.error[:, i, j],
            )
            for i, j in chosen
        ]
    save(args.output, "finite_width", rows)
    title = f"Random ReLU networks, width {args.width}, depth {args.finite_depth}: means of {args.draws}"
    figure.finite_width(shown, title, figures.files(args.output, "finite_width"))
    return [
        Sampled(
            f"correlation {1 - pairs.gamma[i, j]:.2f}",
            theory.forward_gamma[:, i, j],
            found.forward_loss.mean[:, i, j],
            found.forward_loss.error[:, i, j],
        )
        for i, j in ((0, 2), (0, 3), (0, 1))
    ]


def kernel_convergence(args: argparse.Namespace) -> list[Fit]:
    """How far tangent kernels of single random networks are from their limit, against width."""
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
    figure.power_laws([panel], "Tangent kernels approach their limit", figures.files(args.output, "kernel_convergence"))
    return [fit]


def initial_alignment(args: argparse.Namespace, dataset: data.Dataset) -> None:
    """Alignment with the labels by layer at initialisation: the limit's, and that of random networks."""
    chosen = data.stratified_subset(dataset.train_y, args.probe_size, args.seed)
    x, y = dataset.train_x[chosen], dataset.train_y[chosen]
    limit = ah.signal_propagation.layer_kernels(RELU, x, args.finite_depth)
    one_hot = torch.nn.functional.one_hot(y, dataset.classes).double()
    seeds = [args.seed + k for k in ALIGNMENT_SEEDS]
    found: dict[str, dict[int, Array]] = {outputs: {} for outputs in OUTPUTS}
    for width in sorted(args.alignment_widths):
        values = []
        for seed in seeds:
            model = feedforward(x.shape[1], width, args.finite_depth, dataset.classes, seed)
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
    figure.alignment(panels, title, figures.files(args.output, "initial_alignment"))


# ---- the study


def print_table(fits: Sequence[Fit]) -> None:
    """All exponents, with theory's."""
    width = max(len(fit.name) for fit in fits)
    print(f"{'exponents':<{width}}  {'of':<5}  {'theory':>7}  {'fitted':<22}  {'with corrections':<22}  constant")
    for fit in fits:
        print(
            f"{fit.name:<{width}}  {fit.variable:<5}  {fit.theory:>7.4f}  {measured(fit.plain):<22}  "
            f"{measured(fit.corrected) if fit.corrected else '':<22}  {constant(fit.best)}"
        )


def study(args: argparse.Namespace) -> int:
    """Numbers, figures and the table of exponents; returns the exit status."""
    dataset = command_line.load(args)
    make_folder(args.output)
    names = ("dataset", "train_size", "probe_size", "epsilon", "width", "finite_depth", "draws", "widths")
    config = {
        name: getattr(args, name) for name in (*names, "alignment_widths", "kernel_draws", "layerwise_depth", "seed")
    } | dataset.describe()
    environment = describe_environment(torch.device("cpu"), ah.build_info())
    for name, content in (("config", config), ("environment", environment)):
        write_atomically(args.output / f"{name}.json", json_of(content))
    say(f"{args.draws} random networks of width {args.width} and depth {args.finite_depth}")
    losses = finite_width(args)
    say("theorems 1 and 2 and corollary 1")
    fits = [*theorem1(args, losses), *theorem2(args), *corollary1(args)]
    say(f"{args.kernel_draws} networks of each of {len(args.widths)} widths")
    fits += kernel_convergence(args)
    say(f"alignment of {len(ALIGNMENT_SEEDS)} networks of each of {len(args.alignment_widths)} widths")
    initial_alignment(args, dataset)
    save(args.output, "exponents", [row(fit) for fit in fits])
    print_table(fits)
    print(f"figures: {args.output}")
    return 0


def row(fit: Fit) -> dict[str, Any]:
    """A line of the table of exponents."""
    values: dict[str, Any] = {"name": fit.name, "variable": fit.variable, "theory": fit.theory}
    for name, law in (("plain", fit.plain), ("corrected", fit.corrected)):
        for column in ("exponent", "exponent_error", "constant", "constant_error"):
            values[f"{name}_{column}"] = getattr(law, column) if law else math.nan
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; a mistake of the user's ends in one message and status 2, not in a traceback."""
    return command_line.finish(__file__, study, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
