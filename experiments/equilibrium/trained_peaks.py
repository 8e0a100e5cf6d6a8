"""Whether theory's equilibrium layer predicts where alignment peaks in trained networks, over depth."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import ahkernels as ah
from experiments.common import command_line, data
from experiments.common.figures import peak_of
from experiments.common.store import Row
from experiments.equilibrium import figure
from experiments.equilibrium.random_networks import RELU, predicted_alignment
from experiments.equilibrium.tables import columns, save

CHOSEN = {"moment": "end", "probe": "train", "centering": "per_output"}  # of all the views of networks of a depth
NUMBERS = ("depth", "seeds", "peak", "near_peak", "least_peak", "greatest_peak")


def read(path: Path) -> list[Row]:
    """The peaks by depth, of the first variant in a table of the study of depth.

    Raises:
        UsageError: If it is no such table.
    """
    try:
        with path.open() as file:
            lines = [line for line in csv.DictReader(file) if all(line[name] == v for name, v in CHOSEN.items())]
        of_first = [line for line in lines if all(line[name] == lines[0][name] for name in ("lr_factor", "batch_size"))]
        rows = [{name: int(line[name]) for name in NUMBERS} for line in of_first]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise command_line.UsageError(
            f"argument --trained-peaks: expected averaged_curves.csv of depth_scaling, got {path} ({error!r})"
        ) from error
    if not rows:
        raise command_line.UsageError(f"argument --trained-peaks: expected a table with peaks, got {path} without any")
    return rows


def compare(args: argparse.Namespace, dataset: data.Dataset, rows: list[Row]) -> None:
    """Write, print and draw the peaks beside the equilibrium layer, and beside the peak that theory has untrained."""
    depths, peaks = columns(rows, "depth", "peak")
    balance = ah.signal_propagation.equilibrium(RELU, depths.astype(np.int64))
    untrained = [peak_of(predicted_alignment(args, dataset, int(depth))["per_output"])[0] for depth in depths]
    lines = [
        {**row, "equilibrium": layer, "peak_before_training": before}
        for row, layer, before in zip(rows, balance.tolist(), untrained, strict=True)
    ]
    save(args.output, "trained_peaks", lines)
    known = np.isfinite(balance)
    ratio = np.log(peaks[known] / balance[known])
    if known.sum() > 2:
        print(
            f"peaks of trained networks, each output centered, at {known.sum()} depths: {np.exp(ratio.mean()):.2f} "
            f"times the equilibrium layer, within a factor {np.exp(ratio.std()):.2f} (deviation of the logarithms); "
            f"rank correlation {spearmanr(peaks[known], balance[known]).statistic:.2f}"
        )
    title = f"{args.dataset}: peaks of trained ReLU networks, each output centered, on training samples"
    figure.trained_peaks(lines, title, args.output / "trained_peaks.png")
