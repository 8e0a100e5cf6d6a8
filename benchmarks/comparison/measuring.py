"""One task, all contenders: variants are tried, values checked, and the best of each is timed round-robin.

All workers of a task are alive together and one of them runs at a time, so that a slow spell of the machine falls on
all, and a ratio is only ever taken between times of the same rounds.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison import problem, reference
from benchmarks.comparison.contenders import Contender
from benchmarks.comparison.tasks import Task
from benchmarks.comparison.worker_process import Refused, WorkerProcess

TOLERANCE = 1e-3  # relative error beyond which a value is wrong
# In fp32 some ReLU of a deep or of an image network turns the other way than in float64, for all alike.
DEEP = 20
DEEP_TOLERANCE = 5e-2
SHORT = 0.05  # seconds; a shorter call is repeated within its round and averaged
WARMED = 2.0  # seconds; of shorter calls the first of a round, which refills caches and wakes threads, does not count
SETTLED = 1.0  # seconds; a shorter first call is repeated before variants are compared
PAUSE = 0.05  # seconds in which the threads of the contender before go to sleep
PROBLEM, VALUE = "problem.npz", "value.npy"  # files in the folder of a task
Row = dict[str, Any]


def tolerance(task: Task) -> float:
    return DEEP_TOLERANCE if task.network != "mlp" or task.depth > DEEP else TOLERANCE


@dataclass(frozen=True)
class Settings:
    """Limits of a run, in seconds and bytes."""

    threads: int
    memory_limit: int | None
    call_limit: float = 10.0
    image_limit: float = 15.0  # of a call with an image network
    estimate_limit: float = 90.0  # of an estimate, which is for sizes that none of the others reach
    preparation_limit: float = 90.0  # of building, compiling and choosing block sizes
    reference_limit: float = 120.0
    reference_flops: float = 1e12  # no more are spent on a reference
    patience: float = 3.0  # times its contender's fastest variant after which another variant is stopped
    rounds: int = 15
    seconds_of_rounds: float = 5.0  # for each contender; the rounds are as many as fit, one at least

    def limit(self, task: Task, estimates: bool = False) -> float:
        """The time limit of one call."""
        if estimates:
            return self.estimate_limit
        return self.call_limit if task.network == "mlp" else self.image_limit


class Pool:
    """The workers of a task or of a sweep, by contender; ends them all."""

    def __init__(self, pythons: dict[str, Path], settings: Settings) -> None:
        self.pythons, self.settings = dict(pythons), settings
        self.workers: dict[str, WorkerProcess] = {}

    def of(self, contender: Contender) -> WorkerProcess:
        name, settings = contender.name, self.settings
        if name not in self.workers or not self.workers[name].alive:
            self.workers[name] = WorkerProcess(self.pythons[name], settings.threads, settings.memory_limit)
        return self.workers[name]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            if worker.alive:
                worker.close()


@dataclass
class Reference:
    """The value that all are compared with: float64, or where that is too dear the first exact contender's."""

    value: np.ndarray | None = None
    source: str | None = None

    @staticmethod
    def of(task: Task, pool: Pool, folder: Path) -> Reference:
        """The value in float64, from a process of its own."""
        maker = Contender("float64", reference)
        pool.pythons[maker.name] = Path(sys.executable)
        try:
            worker = prepare(maker, "", task, pool, folder)
            return Reference(value_of(worker, "", folder, pool.settings.reference_limit), maker.name)
        except Refused:
            return Reference()

    def error(self, value: np.ndarray, contender: Contender) -> float | None:
        if self.value is None:
            if not contender.estimates:
                self.value, self.source = value, contender.name
            return None
        return relative_error(value, self.value)


@dataclass
class Trial:
    """One variant of a contender at a task."""

    variant: str
    outcome: str = "ok"  # or "no", "memory", "time", "failed", "wrong", "estimate"
    reason: str | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    error: float | None = None

    @property
    def ran(self) -> bool:
        return self.outcome in ("ok", "wrong", "estimate")


@dataclass
class Entry:
    """A contender at a task: the trials of its variants, and the rounds of the best one."""

    contender: Contender
    trials: list[Trial] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    homes: dict[str, WorkerProcess] = field(default_factory=dict)  # the process that has a variant's job
    timed: Trial | None = None  # the variant that the rounds are of

    @property
    def best(self) -> Trial | None:
        """The fastest variant with a right value, or where there is none the fastest."""
        ran = [trial for trial in self.trials if trial.ran]
        return min(ran, key=lambda trial: (trial.outcome == "wrong", trial.seconds), default=None)

    def row(self) -> Row:
        shown = self.timed or self.best or self._failure()
        found: Row = {"contender": self.contender.name, "title": self.contender.title, "variant": shown.variant}
        found |= {"outcome": shown.outcome, "reason": shown.reason, "error": shown.error}
        if self.rounds:
            found |= {"median_s": statistics.median(self.rounds), "min_s": min(self.rounds), "rounds_s": self.rounds}
        return found | {"peak_bytes": shown.peak_bytes, "trials": [vars(trial) for trial in self.trials]}

    def line(self) -> str:
        """The text of a progress line."""
        best = self.best
        if best is None:
            failure = self._failure()
            return f"{'no: ' if failure.outcome == 'no' else ''}{failure.reason}"
        text = f"{best.variant}: " if best.variant else ""
        text += f"{in_words(best.seconds)}, {best.peak_bytes / 2**20:.1f} MiB"
        if best.error is not None:
            text += f", error {best.error:.1e}" + (", WRONG" if best.outcome == "wrong" else "")
        return text

    def _failure(self) -> Trial:
        """The trial that says most about why there is no time: one that was made, before one that cannot be."""
        return min(self.trials, key=lambda trial: trial.outcome == "no")


def measure(
    task: Task,
    contenders: Sequence[Contender],
    pool: Pool,
    flops: float,
    say: Callable[[str], None],
    refused: dict[tuple[str, str], Trial] | None = None,
) -> dict[str, Any]:
    """The record of a task: rows, and the source of the reference value.

    Args:
        task: The quantity and its problem.
        contenders: In the order of the table.
        pool: Their workers.
        flops: Least flops of the task, which decide whether a reference in float64 is worth its time.
        say: Takes a line for each contender.
        refused: Outcomes that are known without a trial, by contender and variant.
    """
    settings, refused = pool.settings, refused or {}
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        problem.make(task).save(at / PROBLEM)
        held_to = Reference.of(task, pool, at) if flops <= settings.reference_flops else Reference()
        entries = []
        for contender in contenders:
            entry = Entry(contender)
            for variant in contender.variants:
                known = refused.get((contender.name, variant)) or unable(contender, task, variant, pool)
                entry.trials.append(known or try_variant(entry, variant, task, pool, at, held_to))
            for trial in entry.trials:
                if trial.ran and trial is not entry.best:
                    forget(entry.homes.pop(trial.variant), trial.variant)
            entries.append(entry)
            say(f"  {contender.title}: {entry.line()}")
        time_rounds(entries, pool, task, at)
    for worker in pool.workers.values():
        forget(worker, None)
    rows = [entry.row() for entry in entries]
    return {"task": task.to_dict(), "name": task.name, "reference": held_to.source, "rows": rows}


def unable(contender: Contender, task: Task, variant: str, pool: Pool) -> Trial | None:
    """Why the variant is not tried."""
    reason = contender.unable(task, variant)
    if reason is None and contender.name not in pool.pythons:
        return Trial(variant, "failed", "its environment could not be made")
    return None if reason is None else Trial(variant, "no", reason)


def try_variant(entry: Entry, variant: str, task: Task, pool: Pool, folder: Path, held_to: Reference) -> Trial:
    """Prepare a variant, and run it once or twice for its memory, value and time."""
    limit = pool.settings.limit(task, entry.contender.estimates)
    if entry.best is not None:  # no need to wait for a variant that cannot become the fastest
        limit = min(limit, max(pool.settings.patience * entry.best.seconds, 2 * SETTLED))
    trial = Trial(variant)
    try:
        entry.homes[variant] = worker = prepare(entry.contender, variant, task, pool, folder)
        first = worker.ask(limit, do="peak", variant=variant)
        trial.peak_bytes, trial.seconds = first["bytes"], first["seconds"]
        worker.ask(60, do="value", variant=variant, path=str(folder / VALUE))
        trial.error = held_to.error(np.load(folder / VALUE), entry.contender)
        if trial.seconds < SETTLED:
            again = worker.ask(10 * SETTLED, do="run", variant=variant, calls=2)["seconds"]
            trial.seconds = min(trial.seconds, *again)
    except Refused as refusal:
        trial.outcome, trial.reason = refusal.kind, str(refusal)
        return trial
    if entry.contender.estimates:
        trial.outcome = "estimate"
    elif trial.error is not None and not trial.error <= tolerance(task):
        trial.outcome, trial.reason = "wrong", f"wrong by {trial.error:.1e}"
    return trial


def prepare(contender: Contender, variant: str, task: Task, pool: Pool, folder: Path) -> WorkerProcess:
    """The worker that has the job then, from the problem in the folder."""
    worker = pool.of(contender)
    try:
        make_job(worker, contender.module.__name__, variant, task, folder, pool.settings.preparation_limit)
    except Refused as refusal:
        raise Refused(refusal.kind, f"{refusal} to prepare") if refusal.kind == "time" else refusal from None
    return worker


def make_job(worker: WorkerProcess, module: str, variant: str, task: Task, folder: Path, seconds: float) -> None:
    """Has the worker prepare a contender's job, from the problem in the folder."""
    what = {"contender": module, "variant": variant, "task": task.to_dict(), "problem": str(folder / PROBLEM)}
    worker.ask(seconds, do="prepare", **what)


def value_of(worker: WorkerProcess, variant: str, folder: Path, seconds: float) -> np.ndarray:
    """The value of a prepared job, which the worker forgets then."""
    worker.ask(seconds, do="peak", variant=variant)
    worker.ask(60, do="value", variant=variant, path=str(folder / VALUE))
    forget(worker, variant)
    return np.load(folder / VALUE)


def forget(worker: WorkerProcess, variant: str | None) -> None:
    """Has the worker forget a job, or all of them."""
    if worker.alive:
        with suppress(Refused):
            worker.ask(60, do="forget", variant=variant)


def relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    """Largest relative error of the numbers, or relative Frobenius error of the worst kernel; inf for another shape."""
    if value.shape != expected.shape or not np.isfinite(value).all():
        return math.inf
    pairs = zip(value, expected, strict=True) if value.ndim == 3 else [(value, expected)]
    with np.errstate(divide="ignore", invalid="ignore"):  # nan is no agreement
        if value.ndim == 1:
            return float(np.abs(value / expected - 1).max())
        return max(float(np.linalg.norm(one - other) / np.linalg.norm(other)) for one, other in pairs)


def time_rounds(entries: Sequence[Entry], pool: Pool, task: Task, folder: Path) -> None:
    """Round-robin over the best variants; a contender with slow calls sits out the later rounds."""
    settings, wanted = pool.settings, {}
    for entry in entries:
        entry.timed = best = entry.best
        if best is None:
            continue
        if best.seconds > settings.seconds_of_rounds:  # the trial was the round
            entry.rounds.append(best.seconds)
            continue
        if not entry.homes[best.variant].alive:  # a later variant has taken the process down with it
            with suppress(Refused):
                entry.homes[best.variant] = prepare(entry.contender, best.variant, task, pool, folder)
        wanted[entry.contender.name] = min(settings.rounds, int(settings.seconds_of_rounds / max(best.seconds, SHORT)))
    for turn in range(max(wanted.values(), default=0)):
        for entry in entries:
            best = entry.timed
            if turn >= wanted.get(entry.contender.name, 0):
                continue
            calls = math.ceil(SHORT / best.seconds) + (best.seconds < WARMED)
            time.sleep(PAUSE)
            home = entry.homes[best.variant]
            try:
                found = home.ask(10 * settings.call_limit, do="run", variant=best.variant, calls=calls)
            except Refused as refusal:
                best.outcome, best.reason = refusal.kind, str(refusal)
                wanted[entry.contender.name] = 0
                continue
            entry.rounds.append(statistics.fmean(found["seconds"][best.seconds < WARMED :]))


def in_words(seconds: float) -> str:
    """Seconds with a unit and three figures."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
