"""Wall-clock times that are fair to every contender on a noisy machine.

Contenders run round-robin, so that a slow spell of the machine falls on all of them, and the median and the
minimum of several rounds are reported. A ratio is only ever taken between two timings of the same call.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Job = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one figure for each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def min(self) -> float:
        return min(self.rounds)


def interleaved(jobs: Mapping[str, Job], repeats: int = 5, warmup: int = 1, seconds: float = 0.05) -> dict[str, Timing]:
    """Time the jobs round-robin; a job faster than `seconds` is called as often as fits and averaged."""
    for job in jobs.values():
        for _ in range(warmup):
            job()
    rounds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            gc.collect()
            time.sleep(0.02)  # lets the spinning threads of the previous contender go to sleep
            once = _time(job, 1)  # also refills the caches that the previous contender took
            rounds[name].append(once if once > seconds else _time(job, math.ceil(seconds / once)))
    return {name: Timing(tuple(values)) for name, values in rounds.items()}


def fastest(jobs: Mapping[str, Job], repeats: int = 2) -> tuple[str, dict[str, Timing]]:
    """Name of the fastest job: chooses block sizes and variants before the real comparison."""
    timings = interleaved(jobs, repeats)
    return min(timings, key=lambda name: timings[name].min), timings


def _time(job: Job, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        job()
    return (time.perf_counter() - start) / calls
