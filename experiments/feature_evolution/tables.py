"""The tables of schemes, alignments and single steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.common import figures
from experiments.common.figures import Array, layer_names
from experiments.common.store import Row
from experiments.feature_evolution.figure import SCHEMES, STAGES

CAPTURED = 0.1  # a relative error up to which a scheme captures gradient descent


def relative_error(rows: Sequence[Row], name: str, of: str) -> Array:
    """A relative error of a scheme at every measurement, for its parameters or in the mean over layers."""
    if of == "distance":
        return np.array([row[f"{name}_distance"] for row in rows])
    mean: Array = figures.table([rows], f"{name}_{of}")[0].mean(axis=1)
    return mean


def captured(rows: Sequence[Row], errors: Array) -> str:
    """The last measured iteration up to which the errors are no more than CAPTURED."""
    within = np.logical_and.accumulate(errors <= CAPTURED).sum()
    return "never" if within == 0 else "end" if within == len(rows) else f"{rows[within - 1]['iteration']:,}"


def print_tables(rows: Sequence[Row], steps: Sequence[Row]) -> None:
    """Print the schemes at the end, then alignment by layer, then the prediction of single steps."""
    last, layers = rows[-1], layer_names(rows)
    print(f"gradient descent: training loss {last['train_loss']:.4f} after {last['iteration']} iterations")
    print("relative errors of the schemes at the end, and until which iteration they are", end="")
    print(f" up to {CAPTURED:.0%}; of Psi y~ and kernels the means over layers:")
    errors = {"distance": "parameters", "feature_error": "Psi y~", "kernel_error": "kernels"}
    print(f"  {'scheme':<8}  {'loss':>8}" + "".join(f"  {heading:>10}  {'until':>7}" for heading in errors.values()))
    for name, scheme in SCHEMES.items():
        line = f"  {scheme.short:<8}  {last[f'{name}_loss']:>8.4f}"
        for of in errors:
            found = relative_error(rows, name, of)
            line += f"  {found[-1]:>10.3f}  {captured(rows, found):>7}"
        print(line)
    print(f"rate of OFE that fits the network's next step best: {rows[0]['natural_rate']:.4g} at the start, ", end="")
    print(f"{last['natural_rate']:.4g} at the end")

    width = max(map(len, ["layer", *layers]))
    names = ["start", "descent", *(scheme.short for scheme in SCHEMES.values())]
    print(f"alignment with the labels after {last['iteration']} iterations:")
    print(f"  {'layer':<{width}}" + "".join(f"  {name:>8}" for name in names))
    for layer in layers:
        values = [rows[0][f"cka/{layer}"], last[f"cka/{layer}"], *(last[f"{name}_cka/{layer}"] for name in SCHEMES)]
        print(f"  {layer:<{width}}" + "".join(f"  {value:>8.4f}" for value in values))

    print("change of the alignment in one step, in percent, and by the stages of equation 25:")
    print(f"  {'iteration':>9}  {'layer':>5}" + "".join(f"  {stage:>10}" for stage in STAGES) + "     error")
    for row in steps:
        cells = "".join(f"  {100 * row[stage]:>10.3f}" for stage in STAGES)
        print(f"  {row['iteration']:>9}  {row['layer']:>5}{cells}  {100 * row['traces_error']:>8.3f}")
