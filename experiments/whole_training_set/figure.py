"""Alignment by layer on the whole training set and on probes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.common.figures import GREY, layer_axis, saved
from experiments.common.store import Row

BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe-Ito colours
REACH = 1.96  # standard errors in an error bar: 95%


def whole_training_set(alignments: Sequence[Row], samples: int, title: str, path: Path) -> None:
    """Draw the alignment of each layer on every probe, and on all samples with error bars.

    Args:
        alignments: Rows with columns layer, samples, probe, products (0: exact), cka and cka_error.
        samples: The number of samples in the whole set.
        title: The title of the figure.
        path: The file to write.
    """
    with saved(path, (8.4, 5.4), {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}) as figure:
        ax = figure.subplots()
        probes = [row for row in alignments if row["samples"] < samples]
        for index, probe in enumerate(sorted({row["probe"] for row in probes})):
            chosen = [row for row in probes if row["probe"] == probe]
            label = f"{int(chosen[0]['samples']):,} images, exact (each line a probe)" if index == 0 else None
            ax.plot(*_curve(chosen), color=GREY, marker=".", ms=5, lw=0.9, alpha=0.7, label=label)
        estimated = [row for row in alignments if row["samples"] == samples and row["products"]]
        errors = [REACH * row["cka_error"] for row in estimated]
        label = f"all {samples:,} images, from {int(estimated[0]['products'])} products (95% error bars)"
        layers, values = _curve(estimated)
        ax.errorbar(layers, values, errors, color=BLUE, marker="o", ms=5, lw=1.8, capsize=4, label=label)
        exact = [row for row in alignments if row["samples"] == samples and not row["products"]]
        if exact:
            label = f"all {samples:,} images, exact"
            ax.plot(*_curve(exact), ls="", marker="x", ms=11, mew=2.2, color=ORANGE, label=label, zorder=5)
        layer_axis(ax, int(max(row["layer"] for row in alignments)))
        ax.set_ylim(bottom=0)
        ax.set_ylabel("alignment with the labels (CKA)")
        figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=10.5)
        figure.suptitle(title, fontsize=12)


def _curve(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row["layer"] for row in rows], [row["cka"] for row in rows]
