"""Peak resident memory of a job above what was there before it, measured in a fresh process.

The process builds the inputs and warms the libraries up on tiny ones, returns freed memory to the system,
resets the system's high-water mark, runs the job once and reads the mark again: exact, no sampling. Linux.
"""

import ctypes
import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path


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
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
    baseline, start = _high_water(), time.perf_counter()
    job()
    return Peak(_high_water() - baseline, time.perf_counter() - start)


def _high_water() -> int:
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()).group(1))
