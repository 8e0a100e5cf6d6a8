"""Alignments by number of samples, layer and subset, and what is printed of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.common.figures import Array, layer_names, table
from experiments.common.store import Row

TABLE = "alignments"
KINDS = {"cka": "as it is", "debiased_cka": "debiased"}


def sizes(rows: Sequence[Row]) -> list[int]:
    """The numbers of samples, in ascending order."""
    return sorted({int(row["samples"]) for row in rows})


def states(rows: Sequence[Row]) -> dict[int, str]:
    """What the network was at each iteration with measurements: before or after training."""
    first, last = (int(pick(row["iteration"] for row in rows)) for pick in (min, max))
    return {first: "before training", last: "after training"}


def alignments(rows: Sequence[Row], kind: str, iteration: int, *, shuffled: bool) -> Array:
    """Alignments [sizes, subsets, L] of one kind, with labels or with shuffled labels."""
    chosen = [row for row in rows if row["iteration"] == iteration and bool(row["shuffled"]) == shuffled]
    by_size = [[row for row in chosen if row["samples"] == size] for size in sizes(rows)]
    return table(by_size, kind)


def print_table(rows: Sequence[Row]) -> None:
    """Print means over the subsets: of the layer that aligns best on most samples, and of shuffled labels there."""
    names = layer_names(rows)
    for iteration, state in states(rows).items():
        best = int(np.argmax(alignments(rows, "debiased_cka", iteration, shuffled=False)[-1].mean(0)))
        print(f"{names[best]} {state}, mean ± standard deviation over the subsets:")
        print(
            f"  {'samples':>7}"
            + "".join(f"  {f'{what}{of}':<21}" for what in KINDS.values() for of in ("", ", shuffled"))
        )
        for i, size in enumerate(sizes(rows)):
            line = f"  {size:>7,}"
            for kind in KINDS:
                for shuffled in (False, True):
                    values = alignments(rows, kind, iteration, shuffled=shuffled)[i, :, best]
                    line += f"  {f'{values.mean():.4f} ± {values.std(ddof=1):.4f}':<21}"
            print(line.rstrip())
