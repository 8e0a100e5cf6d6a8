"""Claim tested: one alignment from given factors, fused, is faster than the best plain torch, in little memory.

Contenders at n samples and o outputs, from a [n, N] and g [n, o, N]: ours, its fused pass alone, and plain torch
(common/plain_layer.py) with K in memory, by panels, and by panels that use the symmetry, eager and compiled, every one
at its best block size. The fastest of plain torch is the bar. The floor is half of the square, that is (on)^2 N flops,
in fp32 at the best GEMM rate of this run, and the factors read once at its copy bandwidth.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.common import machine, memory, plain_layer, results, script, timing, workload
from benchmarks.common.ceilings import Ceilings, Work

OUTPUTS = 10
BAR_ERROR = 1e-4  # a variant less accurate than this is shown but is not the bar


def work(n: int, o: int, width: int) -> Work:
    """Half of the backward square, multiply and add, and the factors read once in fp32."""
    return Work(flops=(n * o) ** 2 * width, bytes=4 * n * (o + 1) * width)


def ours_jobs(a: torch.Tensor, g: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], float]]:
    """The public call, and the fused pass by itself."""
    from benchmarks.common import ours

    means = plain_layer.thin_products(a.double(), g.double(), one_hot(y, torch.float64))[0]
    return {
        "ours": lambda: ours.alignment(a, g, y),
        "ours, fused pass alone": lambda: ours.centered_square(a, g, means),
    }


def one_hot(y: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.nn.functional.one_hot(y, OUTPUTS).to(dtype)


def best_of_families(a: torch.Tensor, g: torch.Tensor, y: torch.Tensor) -> tuple[dict[str, Callable[[], float]], dict]:
    """Every family of plain torch at its best block size, and the sweep behind the choice."""
    chosen, sweep = {}, {}
    for family in plain_layer.families(len(a)).values():
        jobs = {name: partial(job, a, g, one_hot(y)) for name, job in family.items()}
        name, timings = timing.fastest(jobs)
        chosen[name] = jobs[name]
        sweep |= {key: value.min for key, value in timings.items()}
    return chosen, sweep


def compare(n: int, width: int, best: Ceilings, args: argparse.Namespace) -> tuple[dict[str, object], str]:
    """All contenders in one round-robin; returns the table and the name of the bar."""
    a, g, y = workload.factors(n, OUTPUTS, width)
    exact, block = (a.double(), g.double(), one_hot(y, torch.float64)), plain_layer.block_sizes(n)[-1]
    reference = {"alignment": plain_layer.blocked(*exact, block)}
    jobs, sweep = best_of_families(a, g, y)
    bars = list(jobs)
    if not args.without_ours:
        means = plain_layer.thin_products(*exact)[0]
        reference["square"] = plain_layer.blocked_square(*exact[:2], means, block)
        jobs = ours_jobs(a, g, y) | jobs
    error = {
        name: abs(job() / reference["square" if "pass" in name else "alignment"] - 1) for name, job in jobs.items()
    }
    timings = timing.interleaved(jobs, args.repeats)
    best.confirm()
    rows = [results.Row(name, timings[name], work(n, OUTPUTS, width), error[name]) for name in jobs]
    if not args.without_ours:
        rows[0].peak = memory.peak(memory_setup, "ours", n, width, args.threads).bytes
    bar = min((name for name in bars if error[name] < BAR_ERROR), key=lambda name: timings[name].median)
    table = results.report(f"n = {n}, o = {OUTPUTS}, N = {width}", rows, best, bar if args.without_ours else "ours")
    print(f"  the bar: {bar}")
    return table | {"bar": bar, "sweep_min_s": sweep}, bar


def at_scale(n: int, width: int, bar: str, best: Ceilings, args: argparse.Namespace) -> dict[str, object]:
    """Ours and the bar where K would take (on)^2 numbers; peak memory is above the factors."""
    a, g, y = workload.factors(n, OUTPUTS, width)
    jobs = {} if args.without_ours else ours_jobs(a, g, y)
    jobs["plain torch: " + bar] = bar_job(bar, a, g, y)
    values = {name: job() for name, job in jobs.items()}
    timings = timing.interleaved(jobs, min(args.repeats, 3), warmup=0)
    best.confirm()
    peaks = {name: memory.peak(memory_setup, name, n, width, args.threads).bytes for name in jobs if "pass" not in name}
    rows = [results.Row(name, timings[name], work(n, OUTPUTS, width), peak=peaks.get(name)) for name in jobs]
    table = results.report(
        f"n = {n}, o = {OUTPUTS}, N = {width}: K would take {4 * (n * OUTPUTS) ** 2 / 2**30:.1f} GiB",
        rows,
        best,
    )
    alignments = [value for name, value in values.items() if "pass" not in name]
    print(f"  alignments agree to {max(alignments) / min(alignments) - 1:.1e}")
    return table | {"alignments": alignments}


def bar_job(bar: str, a: torch.Tensor, g: torch.Tensor, y: torch.Tensor) -> Callable[[], float]:
    """The method called `bar` at other factors, at the block size nearest to the one that was best."""
    method, _, block = bar.partition(", blocks of ")
    family = [name for name in plain_layer.variants(len(a)) if name.partition(", blocks of ")[0] == method]
    name = min(family, key=lambda name: abs(int(name.rsplit(" ", 1)[1]) - int(block))) if block else method
    return partial(plain_layer.variants(len(a))[name], a, g, one_hot(y))


def memory_setup(name: str, n: int, width: int, threads: int) -> Callable[[], float]:
    """The job called `name`, warmed up on tiny factors (for memory.peak)."""
    machine.use_threads(threads)

    def job(size: int) -> Callable[[], float]:
        a, g, y = workload.factors(size, OUTPUTS, width)
        return (
            ours_jobs(a, g, y)[name]
            if name.startswith("ours")
            else bar_job(name.removeprefix("plain torch: "), a, g, y)
        )

    job(64)()
    return job(n)


def main() -> None:
    parser = script.parser("alignment_from_factors", __doc__, quick="at n = 100", repeats=5)
    parser.add_argument("--without-ours", action="store_true", help="the baselines alone")
    args = script.parse(parser)
    torch.manual_seed(0)

    n, large, widths = (100, 200, [64]) if args.quick else (1000, 4000, [256, 1024])
    on = n * OUTPUTS
    shapes = [shape for width in widths for shape in ((on // 10, width, on // 10), (on // 5, width, on))]
    best = script.measure_ceilings(args, [*shapes, (on, widths[0], on)])

    tables = []
    for width in widths:
        table, bar = compare(n, width, best, args)
        tables += [table, at_scale(large, width, bar, best, args)]
    script.save(args, best, tables=tables)


if __name__ == "__main__":
    main()
