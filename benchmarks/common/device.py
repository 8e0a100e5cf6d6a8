"""Times, memory and ceilings of a CUDA device; with "cpu" the same code runs slowly on a host, for trying it out."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

Job = Callable[[], object]
PRODUCTS = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32, "fp64": torch.float64}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def times(jobs: Mapping[str, Job], device: str, repeats: int = 7, seconds: float = 0.02) -> dict[str, dict[str, float]]:
    """Round-robin medians and minima in seconds; a job shorter than `seconds` is called as often as fits."""
    calls, rounds = {}, {name: [] for name in jobs}
    for name, job in jobs.items():
        job()
        calls[name] = max(1, int(seconds / max(_once(job, device, 1), 1e-6)))
    for _ in range(repeats):
        for name, job in jobs.items():
            rounds[name].append(_once(job, device, calls[name]))
    return {name: {"median_s": statistics.median(r), "min_s": min(r), "rounds_s": r} for name, r in rounds.items()}


def _once(job: Job, device: str, calls: int) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        job()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def measured(job: Job, device: str, repeats: int = 7) -> tuple[Any, dict[str, Any], int | None]:
    """A job's value, its times (see `times`), and its peak of memory above the memory in use before.

    A job that takes over a second is called twice in all.
    """
    if device == "cuda":
        synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    value = job()
    synchronize(device)
    slow = time.perf_counter() - start > 1
    peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else None
    if slow:
        seconds = _once(job, device, 1)
        return value, {"median_s": seconds, "min_s": seconds, "rounds_s": [seconds]}, peak
    return value, times({"job": job}, device, repeats)["job"], peak


def ceilings(device: str, size: int) -> Iterator[tuple[str, float]]:
    """Bytes per second of a copy, read and written, and best flop/s of torch's products of size^3 random numbers."""
    source = torch.ones(size * size * 8, device=device)
    target = torch.empty_like(source)
    yield "copy", 8 * source.numel() / times({"copy": lambda: target.copy_(source)}, device)["copy"]["min_s"]
    for name, dtype in PRODUCTS.items():
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        timing = times({name: partial(torch.mm, a, b.T)}, device)[name]
        torch.set_float32_matmul_precision(before)
        yield name, 2 * size**3 / timing["min_s"]


def describe(device: str) -> dict[str, object]:
    if device != "cuda":
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(properties.L2_cache_size / 2**20),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
