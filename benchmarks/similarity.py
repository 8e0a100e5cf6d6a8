"""Claim tested: the alignment of every layer with every other takes one pass, not a kernel in memory for every layer.

A bias-free ReLU network of depth 20, width 256, 10 outputs. Contenders: ours (ahkernels.similarity from the factors);
plain torch with all centered kernels in memory at once and their inner products by one GEMM; and plain torch pair by
pair, which forms two kernels for each. All in fp32. The floor is half of the backward Gram of every layer and half of
every inner product.
"""

import argparse
from functools import partial

import torch

from benchmarks.common import machine, memory, ours, results, script, timing, workload
from benchmarks.common.arguments import positive
from benchmarks.common.ceilings import Ceilings, Work

DEPTH, WIDTH, OUTPUTS = 20, 256, 10
TOLERANCE = 1e-4
Factors = list[tuple[torch.Tensor, torch.Tensor]]


def centered(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """C K C [n*o, n*o] in memory, every pass in place."""
    n, o, width = g.shape
    g = g.reshape(n * o, width)
    k = (g @ g.T).view(n, o, n, o).mul_((a @ a.T)[:, None, :, None]).view(n * o, n * o)
    means = k.mean(0, dtype=torch.float64)
    return k.sub_((means - means.mean()).to(k)[:, None]).sub_(means.to(k))


def all_in_memory(factors: Factors) -> torch.Tensor:
    """One row for each kernel, and one GEMM."""
    rows = torch.stack([centered(a, g).flatten() for a, g in factors])
    moments = (rows @ rows.T).double()
    norms = moments.diagonal().sqrt()
    return moments / norms[:, None] / norms


def pair_by_pair(factors: Factors) -> torch.Tensor:
    """Two kernels in memory at a time."""
    moments = torch.zeros(len(factors), len(factors), dtype=torch.float64)
    for i, first in enumerate(factors):
        row = centered(*first).flatten()
        for j, second in enumerate(factors[: i + 1]):
            moments[i, j] = moments[j, i] = float(row @ (row if i == j else centered(*second).flatten()))
    norms = moments.diagonal().sqrt()
    return moments / norms[:, None] / norms


def problem(n: int) -> Factors:
    """Factors of every layer at initialisation."""
    x, _ = workload.images(n)
    return ours.factors_of(workload.mlp(DEPTH, WIDTH), x)


def jobs_for(factors: Factors):
    """Every contender."""
    return {
        "ours": partial(ours.similarity, factors),
        "all kernels in memory": partial(all_in_memory, factors),
        "pair by pair": partial(pair_by_pair, factors),
    }


def setup(contender: str, n: int, threads: int):
    """The job of a contender, warmed up on few samples (for memory.peak)."""
    machine.use_threads(threads)
    jobs_for(problem(8))[contender]()
    return jobs_for(problem(n))[contender]


def compare(n: int, best: Ceilings, args: argparse.Namespace) -> dict[str, object]:
    """One table; all must agree."""
    factors = problem(n)
    jobs = jobs_for(factors)
    exact = all_in_memory([(a.double(), g.double()) for a, g in factors])
    errors = {name: float((job() - exact).abs().max()) for name, job in jobs.items()}
    if not max(errors.values()) < TOLERANCE:
        raise AssertionError(f"n = {n}: similarities differ by {errors}, more than {TOLERANCE}")
    times = timing.interleaved(jobs, args.repeats, warmup=0)
    entries = (n * OUTPUTS) ** 2
    flops = sum(entries * g.shape[2] + n**2 * a.shape[1] for a, g in factors) + entries * DEPTH * (DEPTH + 1) / 2
    work = Work(flops, sum(4 * (a.numel() + g.numel()) for a, g in factors))
    rows = [
        results.Row(name, times[name], work, errors[name], memory.peak(setup, name, n, args.threads).bytes)
        for name in jobs
    ]
    best.confirm()
    return results.report(f"{DEPTH} x {DEPTH} layers, n = {n}, {n * OUTPUTS} rows", rows, best)


def main() -> None:
    parser = script.parser("similarity", __doc__, quick="at n = 20", repeats=3)
    parser.add_argument("--samples", type=positive(int), nargs="*", default=[64, 256, 500], help="n")
    args = script.parse(parser)
    if args.quick:
        args.samples, args.repeats = [20], 1
    best = script.measure_ceilings(args)
    script.save(args, best, tables=[compare(n, best, args) for n in args.samples])


if __name__ == "__main__":
    main()
