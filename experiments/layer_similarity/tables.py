"""The matrices of similarity between layers as tables, and what is printed of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from experiments.common.figures import Array
from experiments.common.store import Row

START, END, MOVED = "similarity-start", "similarity-end", "similarity-start-end"
FORWARD, BACKWARD = "similarity-forward-end", "similarity-backward-end"
TABLES = {
    START: "tangent kernels at initialisation",
    END: "tangent kernels after training",
    MOVED: "initialisation with the end",
    FORWARD: "forward Grams after training",
    BACKWARD: "backward Grams after training",
}
DIGITS = 6  # significant digits in the tables


def matrix(similarity: Tensor, layers: Sequence[str]) -> list[Row]:
    """Turn similarities [L, L] into a table, with a line for each row; layers are counted from the input."""
    return [
        {"layer": i, **{layer: float(f"{value:.{DIGITS}g}") for layer, value in zip(layers, line, strict=True)}}
        for i, line in enumerate(similarity.tolist(), start=1)
    ]


def array(rows: Sequence[Row]) -> Array:
    """Turn a table of ``matrix`` back into [L, L]."""
    return np.array([[value for name, value in row.items() if name != "layer"] for row in rows])


def print_table(matrices: dict[str, Array], rows: Sequence[Row]) -> None:
    """Print each layer's similarity with the next and with its own start, then means over pairs of layers."""
    layers = [name.removeprefix("with_start/") for name in rows[0] if name.startswith("with_start/")]
    columns = {
        "next, at start": matrices[START].diagonal(1),
        "next, at end": matrices[END].diagonal(1),
        "own start": matrices[MOVED].diagonal(),
    }
    width = max(map(len, ["layer", *layers]))
    print(f"alignment of each layer's kernel with that of another, after {rows[-1]['iteration']} iterations:")
    print(f"  {'layer':<{width}}" + "".join(f"  {name:>14}" for name in columns))
    for i, layer in enumerate(layers):
        cells = [f"{values[i]:.4f}" if i < len(values) else "" for values in columns.values()]
        print(f"  {layer:<{width}}" + "".join(f"  {cell:>14}" for cell in cells))
    if len(layers) > 1:
        print("mean (least) over pairs of different layers:")
        for name, heading in TABLES.items():
            different = matrices[name][~np.eye(len(layers), dtype=bool)]
            print(f"  {heading}: {np.mean(different):.4f} ({np.min(different):.4f})")
    print(
        f"test accuracy {rows[-1]['test_accuracy']:.1%}, train accuracy {rows[-1]['train_accuracy']:.1%}, "
        f"train loss {rows[-1]['train_loss']:.3f}"
    )
