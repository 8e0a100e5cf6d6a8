"""Runs jobs inside a contender's environment: a line of JSON on stdin is a request, one on stdout its answer.

    {"do": "prepare", "contender": module, "variant": v, "task": {...}, "problem": path of .npz} -> {"ok": true}
    {"do": "peak", "variant": v}              -> {"bytes": see `Jobs.peak`, "seconds": of this one call}
    {"do": "run", "variant": v, "calls": k}   -> {"seconds": [of each call]}
    {"do": "value", "variant": v, "path": p}  -> {"ok": true}, with the value of the last call in p (.npy)
    {"do": "forget", "variant": v}            -> {"ok": true}, and the job is gone; null for all of them

or {"error": "memory" or "failed", "message": ...}. What libraries print goes to stderr.

    python -m benchmarks.comparison.worker [bytes of memory it may take]
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import memory
from benchmarks.comparison import problem
from benchmarks.comparison.tasks import Task

WARM_UP = 4  # samples of a call before the first job is prepared
OUT_OF_MEMORY = re.compile(
    r"out of memory|(can't|cannot|unable to) allocate|allocate memory|bad_alloc|RESOURCE_EXHAUSTED|MemoryError",
    re.IGNORECASE,
)


class Jobs:
    """The jobs of one contender, by variant, with a method for each request."""

    def __init__(self) -> None:
        self.jobs: dict[str, Callable[[], np.ndarray]] = {}
        self.values: dict[str, np.ndarray] = {}
        self.held_before: dict[str, int] = {}
        self.warm = False

    def prepare(self, contender: str, variant: str, task: dict[str, Any], problem_path: str) -> dict[str, object]:
        module = importlib.import_module(contender)
        given = problem.load(Path(problem_path), Task(**task))
        if not self.warm:  # libraries and their threads start with the first call
            module.prepare(given.of_samples(WARM_UP), variant)()
            self.warm = True
        self.held_before[variant] = begin_peak() + given.nbytes
        self.jobs[variant] = module.prepare(given, variant)
        return {"ok": True}

    def peak(self, variant: str) -> dict[str, object]:
        """Runs the job once.

        The peak of memory is above what was held before the job was prepared: a job that has run then may hold on to
        what it takes. Model and data, which it has a copy of, do not count.
        """
        self.values.clear()
        begin_peak()
        start = time.perf_counter()
        self.values[variant] = self.jobs[variant]()
        seconds = time.perf_counter() - start
        return {"bytes": max(0, end_peak() - self.held_before[variant]), "seconds": seconds}

    def run(self, variant: str, calls: int) -> dict[str, object]:
        seconds, job = [], self.jobs[variant]
        for _ in range(calls):
            start = time.perf_counter()
            job()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    def value(self, variant: str, path: str) -> dict[str, object]:
        np.save(path, np.asarray(self.values.pop(variant)))
        return {"ok": True}

    def forget(self, variant: str | None) -> dict[str, object]:
        for kept in (self.jobs, self.values):
            if variant is None:
                kept.clear()
            kept.pop(variant, None)
        gc.collect()
        return {"ok": True}


def begin_peak() -> int:
    """The bytes that are held now, on the GPU if torch or jax uses one, once what is free has been given back."""
    gc.collect()
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if jax is not None and jax.default_backend() != "cpu":
        return jax.local_devices()[0].memory_stats()["bytes_in_use"]
    return memory.reset_high_water_mark()


def end_peak() -> int:
    """The most bytes that were held at once since then; jax on a GPU counts from its start."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    if jax is not None and jax.default_backend() != "cpu":
        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    return memory.high_water_mark()


def answer(jobs: Jobs, request: dict[str, Any]) -> dict[str, object]:
    """The answer to a request, or the error that it ended in."""
    verb = request.pop("do")
    if "problem" in request:
        request["problem_path"] = request.pop("problem")
    try:
        return getattr(jobs, verb)(**request)
    except Exception as error:
        # Frames of the traceback hold arrays, which are given back before the next request.
        lines = str(error).strip().splitlines() or [""]
        kind = "memory" if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)) else "failed"
        return {"error": kind, "message": f"{type(error).__name__}: {lines[0]}"[:300]}


def main() -> None:
    if len(sys.argv) > 1:  # private memory alone counts: libraries map files and reserve addresses as they like
        resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]), resource.RLIM_INFINITY))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    jobs = Jobs()
    for line in sys.stdin:
        answers.write(json.dumps(answer(jobs, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
