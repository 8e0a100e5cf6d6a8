"""One run from its store's last checkpoint to its end, with progress on stderr; signals stop it between iterations."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from types import FrameType

from tqdm.auto import tqdm

from experiments.common.store import CHECKPOINT, Row, RunStore, StoreError
from experiments.common.training import Trainer

STDERR = 2  # file descriptor


def say(text: str) -> None:
    """Write a line to stderr that leaves a progress bar whole."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


class Stop:
    """While entered, SIGINT and SIGTERM are noted in ``signal`` (0: none came); a second ends the program."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Stop:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        with suppress(OSError):  # past sys.stderr, which cannot be written to while it is being written to
            os.write(STDERR, b"\nstopping after this iteration (once more: at once)\n")


def run(
    store: RunStore,
    trainer: Trainer,
    at: Collection[int],
    measured: Callable[[], Row],
    checkpoint_every: int,
    reached: Callable[[], bool] = lambda: False,
) -> int:
    """Train and measure from where the store left off.

    Args:
        store: Gets every measurement, and a checkpoint with it.
        trainer: The trainer as built; what the store holds is restored.
        at: Iterations to measure at. Those that the store has a row of are left out.
        measured: Makes one measurement, with columns iteration, train_loss and test_accuracy at least.
        checkpoint_every: Iterations between checkpoints.
        reached: Asked after every iteration; True makes it the last one, and it is measured. It must depend on the
            trainer alone, so that an interrupted run ends where it would have. The stopping rule of the trainer's
            recipe ends the run, too.

    Returns:
        The signal that came, or 0.

    Raises:
        StoreError: If the store holds the state of another training.
    """
    try:
        if store.state is not None:
            trainer.restore(store.state)
        known = {row["iteration"] for row in store.rows}
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {error}".partition("\n")[0]
        raise StoreError(
            f"{store.folder / CHECKPOINT}: expected the state of this training, got another ({reason}); "
            "discard the run with --overwrite"
        ) from error
    bar = tqdm(
        total=trainer.total,
        initial=trainer.iteration,
        desc=store.name,
        unit="it",
        dynamic_ncols=True,
        disable=None,  # no bar where stderr is no terminal: a line per measurement instead
    )

    def measure_and_save(finished: bool) -> None:
        row = measured()
        store.rows.append(row)
        store.save(trainer.state(), finished)
        if bar.disable:
            say(
                f"{store.name}: iteration {trainer.iteration}/{trainer.total}, "
                f"train loss {row['train_loss']:.4f}, test accuracy {row['test_accuracy']:.1%}"
            )

    with Stop() as stop, bar:
        at_end = False

        def after_step(loss: float) -> bool:
            nonlocal at_end
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            at_end = trainer.loss_reached or reached()
            if not at_end and (stop.signal or trainer.iteration % checkpoint_every == 0):
                store.save(trainer.state())
            return at_end or bool(stop.signal)

        trainer.run(
            [step for step in at if step not in known],
            lambda: measure_and_save(finished=trainer.iteration == trainer.total),
            after_step,
        )
        if at_end:
            measure_and_save(finished=True)
    return stop.signal  # also one that came during the last measurement: the next run must not start


def stopped(store: RunStore, number: int, command: str) -> int:
    """Say how to go on with a run that a signal stopped.

    Args:
        store: The run.
        number: The signal.
        command: The command that goes on with the run.

    Returns:
        The exit status.
    """
    say(f"{store.name}: stopped and saved in {store.folder}; to go on:\n  {command}")
    return 128 + number
