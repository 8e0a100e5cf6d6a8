"""Claim tested: beside other work, threads that sleep while they wait keep short calls of an alignment even.

Alignments of all layers of an MLP of depth 10 and width 256 at n = 64, in fresh processes with different settings of
OpenMP, on idle cores and with a process beside them that keeps one core busy. A call has no floor here: what counts is
how far its 90th percentile is from its median.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import numpy as np

from benchmarks.common import ours, script, tables, workload

SETTINGS = {
    "default": {},
    "passive waiting": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
CALLS, PAUSE = 200, 0.005  # seconds between calls
COLUMNS = ["other work", "setting", "median ms", "90th percentile ms"]


def measure(calls: int) -> None:
    """Prints the milliseconds of each call, as JSON: the whole of a fresh process."""
    model, (x, y) = workload.mlp(), workload.images(64)
    for _ in range(10):
        ours.layerwise(model, x, y)
    found = []
    for _ in range(calls):
        start = time.perf_counter()
        ours.layerwise(model, x, y)
        found.append(1e3 * (time.perf_counter() - start))
        time.sleep(PAUSE)
    print(json.dumps(found))


def busy() -> None:
    while True:
        pass


def in_a_process(setting: str, calls: int) -> list[float]:
    """The milliseconds of calls under a setting."""
    command = [sys.executable, "-c", f"from benchmarks import contended; contended.measure({calls})"]
    environment = os.environ | SETTINGS[setting]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = script.parser("contended", __doc__, quick="with few calls", repeats=1)
    args = script.parse(parser)
    calls = 5 if args.quick else CALLS
    rows, milliseconds = [], []
    for other_work in (False, True):
        beside = multiprocessing.get_context("spawn").Process(target=busy, daemon=True)
        if other_work:
            beside.start()
        for setting in SETTINGS:
            found = in_a_process(setting, calls)
            kind = "one core" if other_work else "none"
            rows.append([kind, setting, *(tables.rounded(float(np.percentile(found, part))) for part in (50, 90))])
            milliseconds.append({"other_work": kind, "setting": setting, "milliseconds": found})
        if other_work:
            beside.terminate()
    tables.show("Alignments of all layers at n = 64", COLUMNS, rows)
    script.save(args, columns=COLUMNS, rows=rows, calls=milliseconds)


if __name__ == "__main__":
    main()
