"""Peak resident memory, from the system's high-water mark: exact, and without sampling. Linux only.

`peak` measures a job in a fresh process, which builds the inputs, warms the libraries up on tiny ones, returns freed
memory to the system, resets the mark, runs the job once and reads the mark again. The standard library is enough.
"""

from __future__ import annotations

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
    """`setup(*args)`, a module-level function, makes inputs, warms up on tiny ones, and returns the job."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, setup, args).result()


def return_freed_blocks() -> None:
    """From now on glibc returns each freed block of 256 KiB or more at once.

    Otherwise it keeps freed blocks of up to 32 MiB for reuse, how many differs from run to run, and the mark counts
    them although nobody holds them.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h; a value that is set is no longer adapted
    ctypes.CDLL(None).mallopt(mmap_threshold, 256 << 10)


def reset_high_water_mark() -> int:
    """Returns freed memory to the system, and lets the mark begin at the bytes that are resident now."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
    return high_water_mark()


def high_water_mark() -> int:
    """Most bytes that were resident at once since the mark was reset."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def _measure(setup: Callable[..., Callable[[], object]], args: tuple[object, ...]) -> Peak:
    job = setup(*args)
    baseline, start = reset_high_water_mark(), time.perf_counter()
    job()
    return Peak(high_water_mark() - baseline, time.perf_counter() - start)
