"""Peak resident memory of a job above what was there before it, measured in a fresh process.

The process builds the inputs and warms the libraries up on tiny ones, returns freed memory to the system,
resets the system's high-water mark, runs the job once and reads the mark again: exact, no sampling. Linux.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from common import resident


@dataclass(frozen=True)
class Peak:
    """Bytes above the baseline, and the seconds of that single run."""

    bytes: int
    seconds: float


def peak(setup: Callable[..., Callable[[], object]], *args: object) -> Peak:
    """`setup(*args)`, a module-level function, makes inputs, warms up on tiny ones, returns the job."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, setup, args).result()


def _measure(setup: Callable[..., Callable[[], object]], args: tuple[object, ...]) -> Peak:
    job = setup(*args)
    baseline, start = resident.reset_peak(), time.perf_counter()
    job()
    return Peak(resident.peak() - baseline, time.perf_counter() - start)
