"""Test accuracy of kernel regression by layer, beside the alignment of the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments.common.figures import layer_axis, layer_names, saved
from experiments.common.measuring import binomial_error, counted
from experiments.common.store import Row

NETWORK = "network"  # the kernel of all layers together
START, END = ("#0072B2", "o"), ("#D55E00", "s")  # Okabe-Ito colours


def kernel_machine(rows: Sequence[Row], test_samples: int, all_test_samples: int, title: str, path: Path) -> None:
    """Draw accuracy (left) and alignment (right) by layer, at the start and at the end.

    Accuracies have the binomial error of so many test samples, which all kernels share.

    Args:
        rows: Measurements, the first before training and the last at its end, with columns test_accuracy,
            cka/<layer>, machine_accuracy/<layer> and machine_accuracy/network.
        test_samples: The number of samples that accuracies of kernels are counted on.
        all_test_samples: The same for the network itself.
        title: The title of the figure.
        path: The file to write.
    """
    layers = layer_names(rows)
    with saved(path, (12, 5.4), {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}) as figure:
        accuracy, alignment = figure.subplots(1, 2)
        for row, label, (colour, marker) in ((rows[0], "before training", START), (rows[-1], "after training", END)):
            _draw(
                accuracy,
                row,
                "machine_accuracy",
                layers,
                f"kernel of a layer, {label} (± binomial error)",
                colour,
                marker,
                100,
            )
            _draw_errors(accuracy, row, layers, test_samples, colour)
            whole = row[f"machine_accuracy/{NETWORK}"]
            text = f"kernel of the network, {label}: {counted(whole, test_samples)}"
            accuracy.axhline(100 * whole, color=colour, ls="--", lw=1.4, label=text)
            _draw(alignment, row, "cka", layers, label, colour, marker, 1)
        network = rows[-1]["test_accuracy"]
        text = f"the trained network itself: {counted(network, all_test_samples)}"
        accuracy.axhline(100 * network, color="black", ls=":", lw=1.6, label=text)
        accuracy.set_ylabel("test accuracy (%)")
        accuracy.set_title("(a) kernel regression", fontsize=11)
        alignment.set_ylabel("alignment with the labels (CKA)")
        alignment.set_title("(b) alignment of the kernels", fontsize=11)
        alignment.set_ylim(bottom=0)
        alignment.legend(frameon=False)
        for ax in (accuracy, alignment):
            layer_axis(ax, len(layers))
        handles, labels = accuracy.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
        figure.suptitle(title, fontsize=12)


def _draw_errors(ax: Axes, row: Row, layers: Sequence[str], test_samples: int, colour: str) -> None:
    values = [row[f"machine_accuracy/{layer}"] for layer in layers]
    errors = [100 * binomial_error(value, test_samples) for value in values]
    ax.errorbar(range(1, len(layers) + 1), [100 * v for v in values], errors, ls="", color=colour, capsize=3)


def _draw(
    ax: Axes, row: Row, column: str, layers: Sequence[str], label: str, colour: str, marker: str, scale: float
) -> None:
    values = [scale * row[f"{column}/{layer}"] for layer in layers]
    index = np.arange(1, len(layers) + 1)
    ax.plot(index, values, color=colour, marker=marker, ms=5, lw=1.8, label=label, clip_on=False)
