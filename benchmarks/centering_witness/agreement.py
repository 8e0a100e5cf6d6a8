"""When two ways to center agree: in every layer, by every way of NNGeometry, to the tolerance."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.common import tables

TOLERANCE = 1e-5  # of an alignment, relative
Alignments = Mapping[str, float]  # by the name of the layer


@dataclass(frozen=True)
class Layer:
    """The alignments of one layer; `theirs` and `differences` are by the way of NNGeometry."""

    network: str
    numbers: str
    layer: str
    ours: float
    theirs: dict[str, float]
    differences: dict[str, float]
    ours_global: float

    @property
    def agrees(self) -> bool:
        return all(one <= TOLERANCE for one in self.differences.values())  # False for nan

    def cells(self) -> list[tables.Cell]:
        cells: list[tables.Cell] = [self.network, self.numbers, self.layer, tables.rounded(self.ours, 8)]
        for variant, value in self.theirs.items():
            cells += [tables.rounded(value, 8), tables.rounded(self.differences[variant], 2)]
        return [*cells, tables.rounded(self.ours_global, 8)]


def differences(found: Alignments, expected: Alignments) -> dict[str, float]:
    """Relative differences by layer; nan for a layer that only one of the two has, and where 0 is expected."""
    layers = dict.fromkeys([*expected, *found])
    pairs = {layer: (found.get(layer, math.nan), expected.get(layer, math.nan)) for layer in layers}
    return {layer: abs(one - other) / abs(other) if other else math.nan for layer, (one, other) in pairs.items()}


def side_by_side(
    network: str, numbers: str, ours: Mapping[str, Alignments], theirs: Mapping[str, Alignments]
) -> list[Layer]:
    """Every layer that one of them has; `ours` is by centering, `theirs` by the way of NNGeometry."""
    own = ours["per_output"]
    apart = {variant: differences(values, own) for variant, values in theirs.items()}
    return [
        Layer(
            network,
            numbers,
            layer,
            own.get(layer, math.nan),
            {variant: values.get(layer, math.nan) for variant, values in theirs.items()},
            {variant: values.get(layer, math.nan) for variant, values in apart.items()},
            ours["global"].get(layer, math.nan),
        )
        for layer in dict.fromkeys([*own, *(name for values in theirs.values() for name in values)])
    ]


def largest(layers: Sequence[Layer]) -> dict[str, dict[str, float]]:
    """The largest difference of each network, by the way of NNGeometry."""
    found: dict[str, dict[str, float]] = {}
    for one in layers:
        of_network = found.setdefault(f"{one.network}, {one.numbers}", {})
        for variant, value in one.differences.items():
            of_network[variant] = float(np.maximum(of_network.get(variant, 0.0), value))  # nan where there is one
    return found


def verdict(layers: Sequence[Layer]) -> int:
    """Prints how far apart the two are, and returns the exit status."""
    for network, found in largest(layers).items():
        print(f"{network}: largest difference " + ", ".join(f"{value:.1e} ({way})" for way, value in found.items()))
    wrong = [one for one in layers if not one.agrees]
    for one in wrong:
        apart = ", ".join(f"{value:.1e} ({way})" for way, value in one.differences.items())
        print(f"{one.network}, {one.numbers}, layer {one.layer}: {apart}, more than {TOLERANCE:g}", file=sys.stderr)
    return int(bool(wrong) or not layers)
