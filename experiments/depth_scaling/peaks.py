"""The layers where alignment peaks, at the end of training and at the lowest test loss: panels, fits and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common import figures
from experiments.common.figures import Array
from experiments.common.store import Row
from experiments.depth_scaling.figure import Panel
from experiments.depth_scaling.line_fit import CONFIDENCE, THEORY, Line
from experiments.depth_scaling.networks import Network, Variant

SHOWN = "cka/train/per_output"
MOMENTS = {"end": "at the end of training", "best": "at the lowest test loss measured"}


def chosen(rows: Sequence[Row], moment: str) -> Row | None:
    """The row of a moment; None if the run diverged, has no rows yet, or no layer has an alignment."""
    if not rows or any(math.isnan(row["train_loss"]) for row in rows):
        return None
    row = rows[-1] if moment == "end" else min(rows, key=lambda row: row["test_loss"])
    return None if math.isnan(figures.peak(row, SHOWN)[1]) else row


def alignment(row: Row) -> Array:
    """The alignment by layer, [L]."""
    values: Array = figures.table([[row]], SHOWN, SHOWN)[0, 0]
    return values


def panel(found: dict[Network, list[Row]], of: Variant, moment: str) -> Panel | None:
    """One picture with the mean alignment over seeds and the peaks of each seed; None where there is nothing yet."""
    rows = {one: row for one, rows in found.items() if one.variant == of and (row := chosen(rows, moment))}
    if not rows:
        return None
    columns = {
        depth: np.mean([alignment(row) for one, row in rows.items() if one.depth == depth], axis=0)
        for depth in sorted({one.depth for one in rows})
    }
    ordered = sorted(rows, key=lambda one: (one.depth, one.seed))
    peaks = Line([one.depth for one in ordered], [figures.peak(rows[one], SHOWN)[0] for one in ordered])
    return Panel(f"{of.label}\n{MOMENTS[moment]}", columns, peaks)


def summary(found: dict[Network, list[Row]]) -> list[dict[str, Any]]:
    """Make one line for each network and moment."""
    lines = []
    for one, rows in found.items():
        for moment in MOMENTS:
            row = chosen(rows, moment)
            if row is None:
                continue
            peak, cka = figures.peak(row, SHOWN)
            lines.append(
                {
                    "lr_factor": one.variant.lr_factor,
                    "batch_size": one.variant.batch_size,
                    "depth": one.depth,
                    "seed": one.seed,
                    "lr": one.lr,
                    "moment": moment,
                    "epoch": row["epoch"],
                    "train_loss": row["train_loss"],
                    "test_loss": row["test_loss"],
                    "train_accuracy": row["train_accuracy"],
                    "test_accuracy": row["test_accuracy"],
                    "peak": peak,
                    "cka": cka,
                }
            )
    return sorted(lines, key=lambda line: (-line["lr_factor"], line["batch_size"], line["depth"], line["seed"]))


def fits(panels: dict[tuple[Variant, str], Panel]) -> list[dict[str, Any]]:
    """Make one line for each picture with enough depths."""
    lines = []
    for (of, moment), one in panels.items():
        if not one.peaks.fitted:
            continue
        (low, high), best = one.peaks.interval, one.peaks.best
        lines.append(
            {
                "lr_factor": of.lr_factor,
                "batch_size": of.batch_size,
                "moment": moment,
                "networks": len(one.peaks.depths),
                "slope": best.exponent,
                "low": low,
                "high": high,
                "constant": best.constant,
                "residual": best.residual,
                "constant_at_3/5": one.peaks.theory_constant,
                "residual_at_3/5": one.peaks.theory_residual,
            }
        )
    return lines


def print_tables(lines: Sequence[dict[str, Any]], fitted: Sequence[dict[str, Any]]) -> None:
    """Print a line for each network and moment, then the fits."""
    print("networks, at the end of training and at the lowest test loss measured:")
    columns = "".join(f"{name:>11}" for name in ("depth", "seed", "epochs", "train acc.", "test acc.", "peak"))
    print(f"  {'variant':<10}{columns}  alignment")
    for line in lines:
        of = f"{line['lr_factor']:g}:{line['batch_size']}"
        print(
            f"  {of:<10}{line['depth']:>11}{line['seed']:>11}{line['epoch']:>11.3g}{line['train_accuracy']:>11.1%}"
            f"{line['test_accuracy']:>11.1%}{line['peak']:>11}  {line['cka']:.4f}  {line['moment']}"
        )
    for line in fitted:
        print(
            f"{line['lr_factor']:g}:{line['batch_size']}, {MOMENTS[line['moment']]}: slope {line['slope']:.2f}, "
            f"{CONFIDENCE:.0%} interval {line['low']:.2f} ... {line['high']:.2f} (theory {THEORY:g})"
        )
