"""The tables of alignments by layer, of peaks, and of accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.alignment_hierarchy.figure import PROBES, moments
from experiments.common.figures import column, layer_names, mean_over_runs, near_peak, table
from experiments.common.measuring import CENTERINGS, binomial_error
from experiments.common.store import Row

Rows = Sequence[dict[str, Any]]


def peaks(runs: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """Make one line for each moment, probe and centering, about the mean over runs; none where it is nan in all layers.

    Its columns null and null_greatest are the mean alignment with shuffled labels, and the greatest, at the peak.
    """
    lines = []
    for moment, measurement in moments(runs).items():
        for part in PROBES:
            for centering in CENTERINGS:
                of = f"{part}/{centering}"
                values, null, greatest = (
                    table(runs, f"{name}/{of}", f"cka/{of}")[:, measurement]
                    for name in ("cka", "null", "null_greatest")
                )
                mean = mean_over_runs(values)
                if np.isnan(mean).all():
                    continue
                peak = int(np.nanargmax(mean))
                lines.append(
                    {
                        "moment": moment,
                        "iteration": int(runs[0][measurement]["iteration"]),
                        "probe": part,
                        "centering": centering,
                        "seeds": len(runs),
                        "peak": peak + 1,
                        "cka": float(mean[peak]),
                        "near_peak": near_peak(mean),
                        "peaks_of_seeds": " ".join(
                            str(int(np.nanargmax(one)) + 1) for one in values if not np.isnan(one).all()
                        ),
                        "null": float(np.nanmean(null[:, peak])),
                        "null_greatest": float(np.nanmax(greatest[:, peak])),
                    }
                )
    return lines


def accuracies(runs: Sequence[Sequence[Row]], test_samples: int) -> list[dict[str, Any]]:
    """Make one line for each moment: losses and accuracies in the mean over runs, and how the latter are off.

    The binomial error is that of one network on so many test samples, which all networks share.
    """
    lines = []
    for moment, measurement in moments(runs).items():
        names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
        means = {name: float(column(runs, name)[:, measurement].mean()) for name in names}
        of_seeds = column(runs, "test_accuracy")[:, measurement]
        accuracy = means["test_accuracy"]
        lines.append(
            {
                "moment": moment,
                "iteration": int(runs[0][measurement]["iteration"]),
                "seeds": len(runs),
                **means,
                "binomial_error": binomial_error(accuracy, test_samples),
                "least_test_accuracy": float(of_seeds.min()),
                "greatest_test_accuracy": float(of_seeds.max()),
            }
        )
    return lines


def print_tables(runs: Sequence[Sequence[Row]], of_peaks: Rows, of_accuracies: Rows) -> None:
    """Print the alignment by layer at the end in the mean over seeds, then peaks and accuracies."""
    kinds = [f"cka/{part}/{centering}" for part in PROBES for centering in CENTERINGS]
    layers = layer_names(runs[0], kinds[0])
    columns = {kind.removeprefix("cka/").replace("_", " "): table(runs, kind, kind)[:, -1] for kind in kinds}
    columns |= {
        name.replace("_cka", " only"): table(runs, name, kinds[0])[:, -1] for name in ("forward_cka", "backward_cka")
    }
    means = {title: mean_over_runs(values) for title, values in columns.items()}
    greatest = {title: None if np.isnan(mean).all() else int(np.nanargmax(mean)) for title, mean in means.items()}
    width = max(map(len, ["layer", *layers]))
    seeds = f", mean of {len(runs)} seeds" if len(runs) > 1 else ""
    iteration = int(runs[0][-1]["iteration"])
    print(f"alignment with the labels after {iteration} iterations{seeds} (* greatest of its column):")
    print(f"{'layer':<{width}}" + "".join(f"  {title:>16}" for title in columns))
    for index, layer in enumerate(layers):
        cells = (f"{'*' if index == greatest[title] else ''}{mean[index]:.4f}" for title, mean in means.items())
        print(f"{layer:<{width}}" + "".join(f"  {cell:>16}" for cell in cells))
    for line in of_peaks:
        print(
            f"{line['moment']} (iteration {line['iteration']:,}), {line['probe']}, "
            f"{line['centering'].replace('_', ' ')}: peak at layer {line['peak']} ({line['cka']:.4f}; of seeds: "
            f"{line['peaks_of_seeds']}; {line['near_peak']} within 2% of it), shuffled labels {line['null']:.4f}, "
            f"at most {line['null_greatest']:.4f}"
        )
    for line in of_accuracies:
        print(
            f"{line['moment']}: test accuracy {line['test_accuracy']:.1%} ± {line['binomial_error']:.1%} (binomial), "
            f"test loss {line['test_loss']:.3f}, train loss {line['train_loss']:.3f}"
        )
