"""The runs of a study as jobs: in turn in one process, or shared among any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.common.running import run, say, stopped
from experiments.common.store import BusyError, Row, RunStore, make_folder, read_metrics, require_config
from experiments.common.training import DivergedError, Recipe, Trainer

Config = dict[str, Any]  # JSON-serialisable values by name


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        name: The name of the run's folder, which is printed with all messages.
        train: Trains and measures until the store is at the run's end. Returns the signal that came, or 0.
        recipe: How the run is trained; None where the study's options say it all.
        settings: What else sets this run apart from the study's other runs.
        finished: Whether these rows of the metrics are all that there will be. Only shared jobs need it.
        config: All that determines the numbers, up to the machine. ``Study`` makes it out of options, recipe, data
            and settings.
    """

    name: str
    train: Callable[[RunStore], int]
    recipe: Recipe | None = None
    settings: Config = field(default_factory=dict)
    finished: Callable[[list[Row]], bool] = lambda rows: False
    config: Config = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """The results of one job.

    Attributes:
        rows: The measurements in order.
        tables: Further tables by name; empty for shared jobs.
        finished: Whether there will be no more rows.
    """

    rows: list[Row]
    tables: dict[str, list[Row]] = field(default_factory=dict)
    finished: bool = True


def ended(rows: Sequence[Row], total: int) -> bool:
    """Whether the last row is at iteration ``total``, where the stopping rule held, or ends a run that diverged."""
    if not rows:
        return False
    last = rows[-1]
    return last["iteration"] == total or last.get("loss_reached") == 1 or math.isnan(last["train_loss"])


def in_turn(
    output: Path,
    jobs: Sequence[Job],
    environment: dict[str, Any],
    command: str,
    remedy: str,
    overwrite: bool = False,
    tables: Sequence[str] = (),
) -> tuple[int, dict[str, Run]]:
    """Do the jobs one after the other, with the folders of all of them locked against other processes.

    Args:
        output: The study's folder; every job has a folder of its name in it.
        jobs: The jobs in the order in which they are done.
        environment: See ``RunStore``, also for what is raised.
        command: The command that goes on with what a signal stopped.
        remedy: What to choose where training diverges.
        overwrite: Whether to discard what the jobs' folders hold.
        tables: See ``RunStore``.

    Returns:
        The exit status, which is 0 or what the signal that came asks for, and the results of the jobs by name.

    Raises:
        DivergedError: If a run diverges, with the run's name and the remedy.
    """
    with ExitStack() as opened:
        stores = {}
        for job in jobs:
            store = RunStore(output / job.name, job.config, environment, overwrite, tables)
            stores[job.name] = opened.enter_context(store)
            _say_notes(store)
        if all(store.finished for store in stores.values()):
            _say_finished(output)
        for job in jobs:
            store = stores[job.name]
            if store.finished:
                continue
            try:
                number = job.train(store)
            except DivergedError as error:
                raise DivergedError(f"{job.name}: {error}; choose {remedy} and another --output") from error
            if number:
                return stopped(store, number, command), {}
        return 0, {name: Run(store.rows, store.tables) for name, store in stores.items()}


def share(
    output: Path,
    jobs: Sequence[Job],
    environment: dict[str, Any],
    command: str,
    overwrite: bool = False,
    tables: Sequence[str] = (),
) -> int:
    """Do the jobs that no other process has or had, in this order, until none is left.

    Args:
        output: The study's folder; every job has a folder of its name in it.
        jobs: The jobs of the study, the same in every process.
        environment: See ``RunStore``.
        command: The command that goes on with what a signal stopped.
        overwrite: Whether to discard what the jobs' folders hold.
        tables: See ``RunStore``.

    Returns:
        The exit status, which is 0 or what the signal that came asks for.

    Raises:
        StoreError: Before anything is begun, if a folder holds a run of another configuration.
        BusyError: If a run that is to be discarded is at work in another process.
    """
    make_folder(output)
    with ExitStack() as discarded:
        for job in jobs if overwrite else ():
            discarded.enter_context(RunStore(output / job.name, job.config, environment, True, tables))
    for job in jobs:
        require_config(output / job.name, job.config)

    done_before = True
    while True:
        worked, busy = False, {}
        for job in jobs:
            if read(output, job).finished:
                continue
            done_before = False
            try:
                store = RunStore(output / job.name, job.config, environment)
            except BusyError as error:
                busy[job.name] = str(error)
                continue
            with store:
                _say_notes(store)
                if store.finished:  # since it was looked at
                    continue
                worked = True
                if number := job.train(store):
                    return stopped(store, number, command)
            done = sum(read(output, one).finished for one in jobs)
            say(f"{job.name}: done ({done} of {len(jobs)} runs)")
        if not worked:  # otherwise look again: a process may have died meanwhile, and left its run
            break
    if done_before:
        _say_finished(output)
    if busy:
        say(f"{output}: no run left to do; other processes have {', '.join(busy)}, and draw the figures again")
        for sentence in busy.values():
            say(f"note: {sentence}")
    return 0


def read(output: Path, job: Job) -> Run:
    """Read the rows that a shared job has left in the study's folder so far, whichever process did it."""
    rows = read_metrics(output / job.name)
    return Run(rows, finished=job.finished(rows))


def run_to_end_or_divergence(
    store: RunStore,
    trainer: Trainer,
    at: Collection[int],
    measured: Callable[[], Row],
    checkpoint_every: int,
    reached: Callable[[], bool] = lambda: False,
) -> int:
    """As ``running.run``, but a run that diverges after its first row ends with a row of nan.

    Raises:
        DivergedError: If there is no row yet: then no choice of how to train is at fault.
    """
    try:
        return run(store, trainer, at, measured, checkpoint_every, reached)
    except DivergedError as error:
        say(f"{store.name}: {error}")
        if not store.rows:
            raise
        where = {"iteration": trainer.iteration, "epoch": trainer.epoch}
        store.rows.append(dict.fromkeys(store.rows[0], math.nan) | where)
        store.save(trainer.state(), finished=True)
        return 0


def _say_notes(store: RunStore) -> None:
    for note in store.notes:
        say(f"note: {note}")


def _say_finished(output: Path) -> None:
    say(f"{output}: finished before; nothing to train, only figures are drawn again")
