"""Independent runs in one result folder: any number of processes share them, and each is done once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.common.running import run, say, stopped
from experiments.common.store import BusyError, Row, RunStore, make_folder, read_metrics, require_config
from experiments.common.training import DivergedError, Trainer


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        name: of its folder, and in all that is printed.
        config: all that determines its numbers, up to the machine it runs on.
        finished: whether these rows of its metrics are all that there will be.
        work: brings its store to the end; returns the signal that came, or 0.
    """

    name: str
    config: dict[str, Any]
    finished: Callable[[list[Row]], bool]
    work: Callable[[RunStore], int]


def ended(rows: Sequence[Row], total: int) -> bool:
    """Whether the last row is that of iteration ``total``, or of a run that diverged."""
    return bool(rows) and (rows[-1]["iteration"] == total or math.isnan(rows[-1]["train_loss"]))


def share(
    output: Path,
    jobs: Sequence[Job],
    environment: dict[str, Any],
    overwrite: bool = False,
    tables: Sequence[str] = (),
) -> int:
    """Do the jobs that no other process has or had, in this order, until none is left.

    Args:
        output: folder of the study; every job has a folder of its name in it.
        jobs: of the study, the same in every process.
        environment: see ``RunStore``.
        overwrite: discard what the jobs' folders hold.
        tables: see ``RunStore``.

    Returns:
        The exit status: 0, or what the signal that came asks for.

    Raises:
        StoreError: before anything is begun, if a folder holds a run of another configuration.
        BusyError: if a run that is to be discarded is at work in another process.
    """
    make_folder(output)
    with ExitStack() as discarded:
        for job in jobs if overwrite else ():
            discarded.enter_context(RunStore(output / job.name, job.config, environment, True, tables))
    for job in jobs:
        require_config(output / job.name, job.config)

    def finished(job: Job) -> bool:
        return job.finished(read_metrics(output / job.name))

    done_before = True
    while True:
        worked, busy = False, []
        for job in jobs:
            if finished(job):
                continue
            done_before = False
            try:
                store = RunStore(output / job.name, job.config, environment)
            except BusyError:
                busy.append(job.name)
                continue
            with store:
                for note in store.notes:
                    say(f"note: {note}")
                if store.finished:  # since it was looked at
                    continue
                worked = True
                if number := job.work(store):
                    return stopped(store, job.name, number)
            say(f"{job.name}: done ({sum(map(finished, jobs))} of {len(jobs)} runs)")
        if not worked:  # otherwise look again: a process may have died meanwhile, and left its run
            break
    if done_before:
        say(f"{output}: finished before; nothing to train, only figures are drawn again")
    if busy:
        say(f"{output}: no run left to do; other processes have {', '.join(busy)}, and draw the figures again")
    return 0


def train(
    store: RunStore,
    trainer: Trainer,
    name: str,
    at: Collection[int],
    measured: Callable[[], Row],
    checkpoint_every: int,
    reached: Callable[[], bool] = lambda: False,
) -> int:
    """As ``running.run``, but a run that diverges after its first row ends with a row of nan.

    Raises:
        DivergedError: if there is no row yet: then no choice of how to train is at fault.
    """
    try:
        return run(store, trainer, name, at, measured, checkpoint_every, reached)
    except DivergedError as error:
        say(f"{name}: {error}")
        if not store.rows:
            raise
        where = {"iteration": trainer.iteration, "epoch": trainer.epoch}
        store.rows.append(dict.fromkeys(store.rows[0], math.nan) | where)
        store.save(trainer.state(), finished=True)
        return 0
