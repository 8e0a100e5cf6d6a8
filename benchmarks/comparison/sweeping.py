"""A sweep over sizes: every contender goes on until it fails, or until it would take too long."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.comparison.contenders import Contender
from benchmarks.comparison.measuring import Pool, Settings, Trial, measure
from benchmarks.comparison.tasks import Sweep, Task

Record = dict[str, Any]


def run(
    sweep: Sweep,
    contenders: Sequence[Contender],
    pool: Pool,
    flops: Callable[[Task], float],
    say: Callable[[str], None],
    before: Sequence[Record] = (),
) -> Iterator[Record]:
    """The record of each size, in order; `before` has the records of the first sizes, which are known."""
    records = list(before)
    for task in sweep.tasks()[len(records) :]:
        say(f"{sweep.name}: {sweep.axis} = {getattr(task, sweep.axis):,}")
        refused = stopped(records, sweep.axis, task, contenders, pool.settings)
        records.append(measure(task, contenders, pool, flops(task), say, refused))
        yield records[-1]


def stopped(
    records: Sequence[Record], axis: str, task: Task, contenders: Sequence[Contender], settings: Settings
) -> dict[tuple[str, str], Trial]:
    """Variants of contenders that are not tried at this task, and why, from the smaller sizes along the axis."""
    found, value = {}, getattr(task, axis)
    estimates = {one.name for one in contenders if one.estimates}
    for contender, variants in _histories(records, axis).items():
        limit = settings.limit(task, contender in estimates)
        last = {variant: trials[-1] for variant, trials in variants.items()}
        fastest = min((one["seconds"] for _, one in last.values() if _ran(one)), default=math.inf)
        for variant, trials in variants.items():
            at, trial = last[variant]
            if trial["outcome"] == "no":
                continue
            if not _ran(trial):
                reason = trial["reason"].split(" at ")[0]
                found[contender, variant] = Trial(variant, trial["outcome"], f"{reason} at {axis} = {at:,}")
            elif trial["seconds"] > settings.patience * fastest:
                reason = f"over {settings.patience:g} times as slow as another variant at {axis} = {at:,}"
                found[contender, variant] = Trial(variant, "no", reason)
            elif extrapolated([(v, one["seconds"]) for v, one in trials if _ran(one)], value) > limit:
                found[contender, variant] = Trial(variant, "time", f"over {limit:.0f} s expected")
    return found


def extrapolated(points: Sequence[tuple[int, float]], value: int) -> float:
    """Seconds at this value, from the growth between the last two, which is linear at least."""
    (at, seconds), exponent = points[-1], 1.0
    if len(points) > 1:
        before, earlier = points[-2]
        exponent = max(1.0, math.log(seconds / earlier) / math.log(at / before))
    return seconds * (value / at) ** exponent


def _ran(trial: dict[str, Any]) -> bool:
    return Trial(**trial).ran


def _histories(records: Sequence[Record], axis: str) -> dict[str, dict[str, list[tuple[int, dict[str, Any]]]]]:
    """Every size and its trial, by contender and variant."""
    found: dict[str, dict[str, list[tuple[int, dict[str, Any]]]]] = {}
    for record in records:
        for row in record["rows"]:
            for trial in row["trials"]:
                of_variant = found.setdefault(row["contender"], {}).setdefault(trial["variant"], [])
                of_variant.append((record["task"][axis], trial))
    return found
