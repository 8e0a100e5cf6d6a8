"""The layers where alignment peaks, by moment of training, probe and centering: curves, fits and tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ahkernels.signal_propagation import Network as InfiniteWidth
from ahkernels.signal_propagation import equilibrium
from experiments.common import figures
from experiments.common.figures import Array
from experiments.common.measuring import CENTERINGS
from experiments.common.store import Row
from experiments.depth_scaling.line_fit import AVERAGED, CONFIDENCE, SINGLE, Line, line
from experiments.depth_scaling.networks import Network, Variant

MOMENTS = {"end": "at the end of training", "best": "at the lowest test loss measured (chosen on test loss)"}
PROBES = {"train": "training samples", "test": "test samples"}
KINDS = {SINGLE: "peaks of single networks", AVERAGED: "peaks of curves averaged over seeds"}


@dataclass(frozen=True)
class Regressor:
    """What the peak is fitted against.

    Attributes:
        name: The name in tables.
        label: The name in figures.
        theory: The slope that theory has.
        values: Makes the numbers of some depths; nan where there is none.
    """

    name: str
    label: str
    theory: float
    values: Callable[[Sequence[int]], Array]


def _equilibrium(depths: Sequence[int]) -> Array:
    """The layer where theory has the balance of information, at infinite width and without an expansion in depth."""
    return equilibrium(InfiniteWidth("relu"), depths)


REGRESSORS = {
    one.name: one
    for one in (
        Regressor("depth", "depth L", 3 / 5, lambda depths: np.array(depths, dtype=np.float64)),  # corollary 1
        Regressor("equilibrium", "equilibrium layer of theory", 1.0, _equilibrium),
    )
}


@dataclass(frozen=True)
class Point:
    """One network in a view.

    Attributes:
        network: The network.
        row: Its measurement.
        values: Its alignment by layer, [L].
        at_epoch_limit: Whether training ended before the loss that was to end it.
    """

    network: Network
    row: Row
    values: Array
    at_epoch_limit: bool

    @property
    def peak(self) -> int:
        """The layer where its alignment peaks."""
        return int(np.nanargmax(self.values)) + 1


@dataclass(frozen=True, eq=False)
class View:
    """The networks of a variant at a moment of training, on a probe, with a centering.

    Attributes:
        variant: The variant.
        moment: One of MOMENTS.
        probe: One of PROBES.
        centering: One of CENTERINGS.
        points: The networks, ordered by depth and seed.
    """

    variant: Variant
    moment: str
    probe: str
    centering: str
    points: list[Point]

    @cached_property
    def curves(self) -> dict[int, Array]:
        """The alignment by layer of the networks of each depth, [seeds, L]."""
        by_depth = itertools.groupby(self.points, key=lambda point: point.network.depth)
        return {depth: np.array([point.values for point in points]) for depth, points in by_depth}

    @cached_property
    def averaged(self) -> dict[int, Array]:
        """The mean of these curves, [L]."""
        return {depth: curves.mean(axis=0) for depth, curves in self.curves.items()}

    @cached_property
    def lines(self) -> dict[tuple[str, str], Line]:
        """The lines by the name of the regressor and the kind of peak."""
        depths = list(self.curves)
        found = {}
        for name, regressor in REGRESSORS.items():
            x = dict(zip(depths, regressor.values(depths).tolist(), strict=True))
            for kind in KINDS:
                one = line(self.curves, x, kind)
                if one is not None:
                    found[name, kind] = one
        return found


def views(runs: Mapping[Network, list[Row]], variants: Iterable[Variant]) -> list[View]:
    """All views of runs that ended with an alignment; none of a variant without such runs."""
    found = []
    for variant, moment, probe, centering in itertools.product(variants, MOMENTS, PROBES, CENTERINGS):
        points = []
        for network in sorted(runs, key=lambda one: (one.depth, one.seed)):
            rows = runs[network]
            if network.variant != variant or any(math.isnan(row["train_loss"]) for row in rows):
                continue
            row = rows[-1] if moment == "end" else min(rows, key=lambda row: row["test_loss"])
            columns = f"cka/{probe}/{centering}"
            values = figures.table([[row]], columns, columns)[0, 0]
            if not np.isnan(values).all():
                points.append(Point(network, row, values, rows[-1].get("loss_reached") == 0))
        if points:
            found.append(View(variant, moment, probe, centering, points))
    return found


# ---- tables


def _described(view: View) -> dict[str, Any]:
    return {
        "lr_factor": view.variant.lr_factor,
        "batch_size": view.variant.batch_size,
        "moment": view.moment,
        "probe": view.probe,
        "centering": view.centering,
    }


def summary(found: Sequence[View]) -> list[dict[str, Any]]:
    """Make one line for each network and view."""
    losses = ("epoch", "train_loss", "test_loss", "train_accuracy", "test_accuracy")
    return [
        {
            **_described(view),
            "depth": point.network.depth,
            "seed": point.network.seed,
            "lr": point.network.lr,
            **{name: point.row[name] for name in losses},
            "at_epoch_limit": int(point.at_epoch_limit),
            "peak": point.peak,
            "cka": float(np.nanmax(point.values)),
            "near_peak": figures.near_peak(point.values),
        }
        for view in found
        for point in view.points
    ]


def averages(found: Sequence[View]) -> list[dict[str, Any]]:
    """Make one line for each depth and view, about the curve averaged over seeds."""
    return [
        {
            **_described(view),
            "depth": depth,
            "seeds": len(view.curves[depth]),
            "at_epoch_limit": sum(point.at_epoch_limit for point in view.points if point.network.depth == depth),
            "peak": int(np.nanargmax(values)) + 1,
            "cka": float(np.nanmax(values)),
            "near_peak": figures.near_peak(values),
            "least_peak": min(point.peak for point in view.points if point.network.depth == depth),
            "greatest_peak": max(point.peak for point in view.points if point.network.depth == depth),
        }
        for view in found
        for depth, values in view.averaged.items()
    ]


def fits(found: Sequence[View]) -> list[dict[str, Any]]:
    """Make one line for each line through peaks."""
    lines = []
    for view in found:
        for (name, kind), one in view.lines.items():
            theory = REGRESSORS[name].theory
            low, high = one.interval
            lines.append(
                {
                    **_described(view),
                    "against": name,
                    "peaks": kind,
                    "depths": len(one.log_x),
                    "networks": len(view.points),
                    "at_epoch_limit": sum(point.at_epoch_limit for point in view.points),
                    "theory": theory,
                    "slope": one.slope,
                    "low": low,
                    "high": high,
                    "constant": one.constant,
                    "residual": one.residual_at(one.slope),
                    "constant_at_theory": one.constant_at(theory),
                    "residual_at_theory": one.residual_at(theory),
                }
            )
    return lines


def print_tables(averaged: Sequence[dict[str, Any]], fitted: Sequence[dict[str, Any]]) -> None:
    """Print a line for each depth and view, then the fits."""
    names = ("depth", "seeds", "peak", "near peak", "of seeds", "at limit")
    print("peaks of curves averaged over seeds; near peak: layers within 2% of the greatest alignment; of seeds: the")
    print("least and the greatest peak of a network; at limit: networks that ended at their epoch limit")
    print(f"  {'variant':<10}" + "".join(f"{name:>10}" for name in names) + "  alignment")
    for row in averaged:
        of = f"{row['lr_factor']:g}:{row['batch_size']}"
        spread = f"{row['least_peak']}...{row['greatest_peak']}"
        print(
            f"  {of:<10}{row['depth']:>10}{row['seeds']:>10}{row['peak']:>10}{row['near_peak']:>10}{spread:>10}"
            f"{row['at_epoch_limit']:>10}  {row['cka']:.4f}  {row['moment']}, {row['probe']}, {row['centering']}"
        )
    for row in fitted:
        print(
            f"{row['lr_factor']:g}:{row['batch_size']}, {row['moment']}, {row['probe']}, {row['centering']}, "
            f"{KINDS[row['peaks']]} against {REGRESSORS[row['against']].label}: slope {row['slope']:.2f}, "
            f"{CONFIDENCE:.0%} interval {row['low']:.2f} ... {row['high']:.2f} (theory {row['theory']:g})"
        )
