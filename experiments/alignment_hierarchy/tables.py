"""The table of alignments by layer."""

from __future__ import annotations

import numpy as np

from experiments.alignment_hierarchy import figure
from experiments.alignment_hierarchy.figure import GLOBAL, PER_OUTPUT
from experiments.common.figures import Array, layer_names, table
from experiments.common.store import Row


def print_table(runs: list[list[Row]]) -> None:
    """Print the alignment by layer with both centerings at the figure's moments, in the mean over seeds."""
    layers = layer_names(runs[0], PER_OUTPUT)

    def values(prefix: str, measurement: int) -> Array:
        return table(runs, prefix, PER_OUTPUT)[:, measurement]

    columns = {
        "per output": values(PER_OUTPUT, -1),
        "global": values(GLOBAL, -1),
        "forward only": values("forward_cka", -1),
        "backward only": values("backward_cka", -1),
    }
    moments = figure.moments(runs)
    for measurement in list(moments.values())[1:]:
        iteration = int(runs[0][measurement]["iteration"])
        columns |= {
            f"per output @{iteration}": values(PER_OUTPUT, measurement),
            f"global @{iteration}": values(GLOBAL, measurement),
        }
    means = {title: figure.mean_over_runs(value) for title, value in columns.items()}
    width = max(map(len, ["layer", *layers]))
    spread = len(runs) > 1
    print(f"alignment with the labels after {int(runs[0][-1]['iteration'])} iterations", end="")
    print(f", mean of {len(runs)} seeds (* greatest of its column):" if spread else " (* greatest of its column):")
    header = f"{'layer':<{width}}" + "".join(f"  {title:>14}" for title in columns)
    print(header + ("  per output: least ... greatest" if spread else ""))
    peaks = {title: None if np.isnan(mean).all() else int(np.nanargmax(mean)) for title, mean in means.items()}
    for index, layer in enumerate(layers):
        line = f"{layer:<{width}}"
        for title, mean in means.items():
            line += f"  {'*' if index == peaks[title] else ''}{mean[index]:.4f}".rjust(max(14, len(title)) + 2)
        if spread:
            column = columns["per output"][:, index]
            line += f"  {np.fmin.reduce(column):.4f} ... {np.fmax.reduce(column):.4f}"
        print(line)
    named = (f"{name}: iteration {int(runs[0][measurement]['iteration'])}" for name, measurement in moments.items())
    print("; ".join(named))
    final = [rows[-1] for rows in runs]
    print(
        f"test accuracy {np.mean([row['test_accuracy'] for row in final]):.1%}, "
        f"test loss {np.mean([row['test_loss'] for row in final]):.3f}, "
        f"train loss {np.mean([row['train_loss'] for row in final]):.3f}"
    )
