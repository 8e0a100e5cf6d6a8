"""Gradient descent beside schemes of feature evolution, and single steps of the alignment beside their prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.common.figures import (
    Array,
    iteration_axis,
    layer_axis,
    layer_bar,
    layer_colours,
    layer_names,
    saved,
    table,
)
from experiments.common.store import Row

MOST_ERROR = 2.0  # a scheme further away is beyond the panel
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}


@dataclass(frozen=True)
class Look:
    """How a curve is drawn, and what it is called."""

    short: str
    label: str
    colour: str
    line: str
    marker: str


DESCENT = Look("descent", "gradient descent", "black", "-", "o")
SCHEMES = {
    "gofe": Look("GOFE", "generalised OFE", "#0072B2", "-", "s"),
    "ofe": Look("OFE", "OFE", "#D55E00", "--", "D"),
    "lazy": Look("lazy", "features at the start (lazy)", "#009E73", ":", "^"),
}
STAGES = {
    "measured": Look("measured", "measured", "black", "-", "o"),
    "numerator": Look("numerator", "norm of the kernel left out", "#56B4E9", "-", "s"),
    "linearised": Look(
        "linearised", r"and $\Psi\tilde y - \eta H_{\tilde y}\Psi w$ for $\Psi(t+1)\tilde y$", "#009E73", "--", "^"
    ),
    "collinear": Look("collinear", r"and $(I - \eta H_w)\Psi\tilde y$ for it", "#D55E00", "-.", "D"),
    "traces": Look("traces", "and traces (equation 25), ± 2 standard errors", "#CC79A7", ":", "v"),
}


# ---- along training


def feature_evolution(rows: Sequence[Row], rate: float, title: str, path: Path) -> None:
    """Draw losses, relative errors of the schemes, and alignments along training and at the end.

    Args:
        rows: Measurements in order, with columns iteration, train_loss, cka/<layer> and for each scheme of SCHEMES
            SCHEME_loss, SCHEME_distance, SCHEME_cka/<layer>, SCHEME_kernel_error/<layer> and
            SCHEME_feature_error/<layer>. A nan leaves a gap.
        rate: The lambda of OFE for the legend.
        title: The title of the figure.
        path: The file to write.
    """
    with saved(path, (16.5, 8.6), STYLE) as figure:
        upper, lower = figure.subplots(2, 4)
        for ax in lower[1:]:
            ax.sharey(lower[0])
        _draw_loss(upper[0], rows)
        _draw_errors(upper[1], rows, "distance", r"$|\theta - \theta_{GD}|\ /\ |\theta_{GD} - \theta_{GD}(0)|$")
        upper[1].set_title("(b) error of the parameters", fontsize=11)
        _draw_errors(upper[2], rows, "feature_error", "relative error, mean and range of layers")
        upper[2].set_title(r"(c) error of the features $\Psi_l\tilde y$ of the labels", fontsize=11)
        _draw_errors(upper[3], rows, "kernel_error", "relative error, mean and range of layers")
        upper[3].set_title("(d) error of the kernels", fontsize=11)
        looks = {"cka": DESCENT, "gofe_cka": SCHEMES["gofe"], "ofe_cka": SCHEMES["ofe"]}
        for letter, ax, (prefix, look) in zip("efg", lower, looks.items(), strict=False):
            _draw_alignments(ax, rows, prefix)
            ax.set_title(f"({letter}) alignment under {look.label}", fontsize=11)
        lower[0].set_ylabel("alignment (CKA), global centering")
        layer_bar(figure, lower[2], len(layer_names(rows)), "layer")
        _draw_end(lower[3], rows)
        handles, labels = lower[3].get_legend_handles_labels()
        labels[2] += rf" ($\lambda = {rate:.4g}$)"
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(title, fontsize=12)


def _logarithmic(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _iterations(rows: Sequence[Row]) -> Array:
    return np.array([row["iteration"] for row in rows])


def _draw_loss(ax: Axes, rows: Sequence[Row]) -> None:
    for name, look in {"train": DESCENT, **SCHEMES}.items():
        values = [row[f"{name}_loss"] for row in rows]
        ax.plot(_iterations(rows), values, look.line, color=look.colour, lw=2)
    _logarithmic(ax)
    ax.set_ylabel("training loss (nats)")
    ax.set_title("(a) loss", fontsize=11)
    iteration_axis(ax, int(rows[-1]["iteration"]))


def _draw_errors(ax: Axes, rows: Sequence[Row], column: str, label: str) -> None:
    iterations = _iterations(rows)
    for name, look in SCHEMES.items():
        if f"{name}_{column}" in rows[0]:
            values = np.array([[row[f"{name}_{column}"]] for row in rows])
        else:
            values = table([rows], f"{name}_{column}")[0]
        ax.fill_between(iterations, values.min(axis=1), values.max(axis=1), color=look.colour, alpha=0.12, lw=0)
        ax.plot(iterations, values.mean(axis=1), look.line, color=look.colour, lw=2)
    if ax.get_ylim()[1] > MOST_ERROR:
        label += f"\n(cut at {MOST_ERROR:g})"
    ax.set_ylim(0, min(ax.get_ylim()[1], MOST_ERROR))
    ax.set_ylabel(label)
    iteration_axis(ax, int(iterations[-1]))


def _draw_alignments(ax: Axes, rows: Sequence[Row], prefix: str) -> None:
    alignments = table([rows], prefix)[0]
    for values, colour in zip(alignments.T, layer_colours(alignments.shape[1]), strict=True):
        ax.plot(_iterations(rows), values, color=colour, lw=1.8)
    _logarithmic(ax)
    iteration_axis(ax, int(rows[-1]["iteration"]))


def _draw_end(ax: Axes, rows: Sequence[Row]) -> None:
    index = np.arange(1, len(layer_names(rows)) + 1)
    for prefix, look in {"cka": DESCENT, **{f"{name}_cka": look for name, look in SCHEMES.items()}}.items():
        values = table([rows], prefix)[0, -1]
        ax.plot(index, values, look.line, color=look.colour, marker=look.marker, ms=5, lw=1.8, label=look.label)
    layer_axis(ax, len(index))
    _logarithmic(ax)
    ax.set_ylabel("alignment (CKA), global centering")
    ax.set_title(f"(h) alignment at iteration {rows[-1]['iteration']:,.0f}", fontsize=11)


# ---- single steps


def alignment_step(rows: Sequence[Row], steps: Sequence[Row], title: str, path: Path) -> None:
    """Draw the change of every layer's alignment in one step, measured and by the stages of equation 25.

    Args:
        rows: Measurements, with columns iteration and collinearity.
        steps: A row for each layer at each iteration, with columns iteration, layer, those of STAGES and traces_error.
        title: The title of the figure.
        path: The file to write.
    """
    collinearity = {row["iteration"]: row["collinearity"] for row in rows}
    moments = sorted({row["iteration"] for row in steps})
    with saved(path, (max(11.5, 2 + 4.6 * len(moments)), 5.8), STYLE) as figure:
        axes = figure.subplots(1, len(moments), squeeze=False)[0]
        for ax, moment in zip(axes, moments, strict=True):
            _draw_step(ax, [row for row in steps if row["iteration"] == moment])
            correlation = rf"$\mathrm{{corr}}(w, \tilde y) = {collinearity[moment]:.2f}$"
            ax.set_title(f"iteration {moment:,.0f}: {correlation}", fontsize=11)
        axes[0].set_ylabel("change of alignment in one step (%), global centering\n(each panel has its own scale)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(title, fontsize=12)


def _draw_step(ax: Axes, steps: Sequence[Row]) -> None:
    layers = [row["layer"] for row in steps]
    ax.axhline(0, color="0.6", lw=0.8)
    for stage, look in STAGES.items():
        values = np.array([100 * row[stage] for row in steps])
        errors = np.array([200 * row["traces_error"] for row in steps]) if stage == "traces" else None
        ax.errorbar(
            layers,
            values,
            errors,
            fmt=look.line,
            color=look.colour,
            marker=look.marker,
            ms=6,
            lw=1.6,
            capsize=3,
            label=look.label,
        )
    layer_axis(ax, len(layers))
