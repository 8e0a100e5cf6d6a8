"""Claim tested: this package beside the ways in which people compute layerwise tangent kernels and alignments today.

One command makes the table: environments of the contenders, every task by every contender that can do it, in rounds
and with its value checked, sweeps over sizes, the JSON file, and the page benchmarks/RESULTS.md with its figures. On a
machine with CUDA it makes the table of the GPU.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.common import ceilings, machine, script
from benchmarks.common import device as on_device
from benchmarks.comparison import environments, measuring, page, sweeping
from benchmarks.comparison.command_line import arguments
from benchmarks.comparison.contenders import UNIT, Contender
from benchmarks.comparison.measuring import Pool, Settings
from benchmarks.comparison.store import MismatchError, Store
from benchmarks.comparison.task_floor import work_of
from benchmarks.comparison.tasks import Sweep, Task
from benchmarks.comparison.worker_process import GIB

MEMORY_SHARE = 2 / 3  # of the machine's, for one contender
QUICK = {"call_limit": 10.0, "rounds": 2, "seconds_of_rounds": 1.0}
SWEEP = {"patience": 2.0, "rounds": 2, "seconds_of_rounds": 1.0, "call_limit": 4.0, "preparation_limit": 15.0}
GPU = {"reference_flops": 1e14, "memory_limit": None}


def settings(args: argparse.Namespace) -> Settings:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = int((args.memory_limit or int(MEMORY_SHARE * total / GIB)) * GIB)
    found = Settings(args.threads, limit)
    if args.device == "cuda":
        found = replace(found, **GPU)
    return replace(found, **QUICK) if args.quick else found


def make_environments(contenders: Sequence[Contender], folder: Path) -> tuple[dict[str, Path], dict[str, object]]:
    """The interpreter of every contender that can be installed, and the record of each."""
    pythons, described = {}, {}

    def made(contender: Contender) -> Path | environments.InstallationError:
        try:
            return environments.python_of(contender.requirements, folder)
        except environments.InstallationError as error:
            return error

    needs = {one.requirements: one for one in contenders}
    with ThreadPoolExecutor(2) as executor:
        by_needs = dict(zip(needs, executor.map(made, needs.values()), strict=True))
    for contender in contenders:
        found = by_needs[contender.requirements]
        described[contender.name] = about = {"title": contender.title, "by_hand": contender.by_hand}
        if isinstance(found, Path):
            pythons[contender.name] = found
            names = [one.split("[")[0].split("{")[0].split("=")[0] for one in contender.requirements]
            about["versions"] = environments.versions(found, names)
            print(f"  {contender.title}: {listed(about['versions'])}", flush=True)
        else:
            about["error"] = str(found)
            print(f"  {contender.title}: no environment: {found}", flush=True)
    return pythons, described


def listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "the runner's environment"


def best_rates(args: argparse.Namespace) -> dict[str, float]:
    """Best flop/s of a product in fp32 quality, and bytes per second of a copy."""
    if args.device == "cuda":
        rates = dict(on_device.ceilings("cuda", 8192))
        # fp32 quality takes the fp32 units, or six bf16 products on tensor cores.
        return {"flops_per_s": max(rates["fp32"], rates["bf16"] / 6), "bytes_per_s": rates["copy"]}
    best = script.measure_ceilings(args, ceilings.PANELS)
    return {"flops_per_s": best.rate(), "bytes_per_s": best.bandwidth}


def run(args: argparse.Namespace) -> Store:
    """Everything that was asked for; each finished task is in the file."""
    start = time.monotonic()
    args.threads = machine.use_threads(args.threads)
    print("environments", flush=True)
    taking_part = [
        one for one in args.found if any(one in args.selection.of(task.name) for task in (*args.tables, *args.sweeps))
    ]
    pythons, described = make_environments(taking_part, args.environments)
    limits = settings(args)
    described_machine = machine.describe() | (on_device.describe("cuda") if args.device == "cuda" else {})
    # Tasks and their limits are code; a file is of one version of it where these agree.
    configuration = {
        "device": described_machine.get("device", described_machine["cpu"]),
        "quick": args.quick,
        "settings": asdict(limits),
        **{name: described_machine[name] for name in ("python", "torch", "ahkernels")},
    }
    head = {"benchmark": "comparison", "configuration": configuration, "machine": described_machine}
    print("ceilings", flush=True)
    head |= {"ceilings": best_rates(args), "contenders": described, "seconds": 0.0}
    store = Store(args.output, head, keep=args.resume or bool(args.only))

    def keep(kind: str, record: dict[str, object], names: list[str]) -> None:
        nonlocal start
        now = time.monotonic()
        store.record["seconds"], start = store.record["seconds"] + now - start, now
        store.put(kind, record, names)

    orders = [task.name for task in args.tables], [sweep.name for sweep in args.sweeps]
    with Pool(pythons, limits) as pool:
        for done, task in enumerate(args.tables, 1):
            contenders = args.selection.of(task.name)
            smaller = [one for one in store.record["tasks"] if is_smaller(Task(**one["task"]), task)]
            if contenders and not (args.resume and store.task(task.name)):
                say(f"[{done}/{len(args.tables)}] {task.name}, after {store.record['seconds'] / 60:.1f} minutes")
                keep("tasks", measure_table(task, contenders, pool, smaller), orders[0])
        pool.settings = limits if args.quick else replace(limits, **SWEEP)
        for sweep in args.sweeps:
            contenders = args.selection.of(sweep.name)
            if contenders:
                stored = (store.sweep(sweep.name) or {"records": []})["records"] if args.resume else []
                for record in measure_sweep(sweep, contenders, pool, stored):
                    keep("sweeps", record, orders[1])
    return store


def is_smaller(one: Task, other: Task) -> bool:
    """Whether it is the same with fewer samples."""
    return one.n < other.n and replace(one, n=other.n) == other


def measure_table(
    task: Task, contenders: Sequence[Contender], pool: Pool, smaller: Sequence[dict[str, object]]
) -> dict[str, object]:
    """`smaller`: the records of the same with fewer samples, which tell who would take too long."""
    least, refused = work_of(task), sweeping.stopped(smaller, "n", task, contenders, pool.settings)
    record = measuring.measure(task, contenders, pool, least.flops, say, refused)
    ratios = [
        f"{row['title']} {row['median_s'] / unit:.2f}"
        for unit in [next((row.get("median_s") for row in record["rows"] if row["contender"] == UNIT), None)]
        if unit
        for row in record["rows"]
        if "median_s" in row
    ]
    say(f"  times ours, medians of rounds: {'; '.join(ratios)}")
    return record | {"work": asdict(least)}


def measure_sweep(
    sweep: Sweep, contenders: Sequence[Contender], pool: Pool, stored: Sequence[dict[str, object]]
) -> Iterator[dict[str, object]]:
    """The record of the sweep as it grows, after each size; `stored` has the records of the first sizes."""
    records = list(stored)
    for record in sweeping.run(sweep, contenders, pool, lambda task: work_of(task).flops, say, stored):
        records.append(record | {"work": asdict(work_of(Task(**record["task"])))})
        yield {"name": sweep.name, "axis": sweep.axis, "base": sweep.base.to_dict(), "records": list(records)}


def say(text: str) -> None:
    print(text, flush=True)


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not args.page_only:
        try:
            store = run(args)
        except MismatchError as mismatch:
            print(
                f"python -m benchmarks.compare: error: {mismatch}; expected the same, or another --output",
                file=sys.stderr,
            )
            return 2
        except KeyboardInterrupt:
            where = f"finished tasks are in {args.output}; go on with --resume" if args.output else "nothing is kept"
            print(f"\nstopped: {where}", file=sys.stderr)
            return 130
        say(f"done in {store.record['seconds'] / 60:.1f} minutes")
        if args.output is None:
            say(page.tables_of(store.record))
    if args.page_only or (args.output is not None and args.output.resolve().parent == script.RESULTS):
        say(f"page: {page.write(script.RESULTS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
