"""Claim tested: the alignment of all layers, from a model and data, costs little more than its GEMMs.

An MLP of depth 10, width 256, 784 inputs and 10 outputs at n = 64, 256 and 1000. Contenders: ours, plain
torch (forward, o cotangents batched, then the best moments of common/plain.py) and the same in one jax.jit,
each at its best variant; for scale, libraries' way, per-layer Jacobians by torch.func. The floor is the flops
of the forward and backward passes and half of each square, at the best fp32 GEMM rate of this run, and the
weights and factors once through memory. All contenders use the same cores, and must agree.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial

import torch
from common import arguments, floor, jacobians, machine, memory, plain, plain_network, results, timing, workload
from common import ceilings as ceiling
from common.ceilings import Ceilings, Work
from comparison.options import positive

TOLERANCE = 1e-3
COMPILED_UP_TO = 64  # samples; beyond, forming all of every K costs more than the compiler saves
Job = Callable[[], torch.Tensor]


def work(model: torch.nn.Sequential, n: int, o: int) -> Work:
    """Forward, o cotangents back to the first preactivation, and half of both Grams of every layer."""
    return floor.alignments([tuple(weight.shape) for weight in model.parameters()], n, o)


def torch_job(model: torch.nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> tuple[str, Job]:
    """The fastest of plain torch: first the capture, then the moments."""
    captures = {"by hand": plain_network.by_hand, "autograd": plain_network.by_autograd}
    chosen, _ = timing.fastest({name: partial(capture, model, x) for name, capture in captures.items()}, 5)
    jobs = {
        f"{name}, {chosen}": partial(plain_network.layerwise, captures[chosen], moments, model, x, y)
        for name, moments in plain.variants(len(x)).items()
    }
    if len(x) <= COMPILED_UP_TO:
        jobs["materialised, all in one torch.compile"] = plain_network.compiled(model, x, y)
    name, _ = timing.fastest(jobs, 3)
    return name, jobs[name]


def jax_job(model: torch.nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> tuple[str, Job]:
    """The fastest of jax.jit; compilation is not timed."""
    from common import jax_network

    sizes = plain.block_sizes(len(x))
    squares = {"materialised": jax_network.materialised}
    for b in sizes:
        squares[f"panels of {b}"] = jax_network.panels(b)
        squares[f"symmetric, mapped, blocks of {b}"] = jax_network.symmetric(b, unrolled=False)
        if len(x) // b <= 10:
            squares[f"symmetric, unrolled, blocks of {b}"] = jax_network.symmetric(b, unrolled=True)
    jobs = {name: jax_network.layerwise(square, model, x, y) for name, square in squares.items()}
    name, _ = timing.fastest(jobs)
    return name, jobs[name]


def problem(n: int) -> tuple[torch.nn.Sequential, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Model, x, y as class indices, y one-hot in fp32."""
    model = workload.mlp()
    x, y = workload.images(n)
    return model, x, y, torch.nn.functional.one_hot(y, 10).float()


def memory_setup(contender: str, n: int, threads: int) -> Job:
    """Ours or the Jacobians, warmed up on four samples (for memory.peak)."""
    machine.use_threads(threads)

    def job(size: int) -> Job:
        model, x, y, target = problem(size)
        if contender == "jacobians":
            return lambda: jacobians.layer_by_layer(model, x, target)
        from common import ours

        return lambda: ours.layerwise(model, x, y)

    job(4)()
    return job(n)


def compare(n: int, best: Ceilings, args: argparse.Namespace) -> dict[str, object]:
    """One table: the three contenders at one n, and where they are affordable the Jacobians."""
    model, x, y, target = problem(n)
    jobs: dict[str, Job] = {}
    if not args.without_ours:
        from common import ours

        jobs["ours"] = lambda: ours.layerwise(model, x, y)
    for library, (variant, job) in {
        "torch": torch_job(model, x, target),
        "jax": jax_job(model, x, target),
    }.items():
        jobs[f"{library}: {variant}"] = job
    reference = plain_network.layerwise(
        plain_network.by_hand, plain.materialised, copy.deepcopy(model).double(), x.double(), target.double()
    )
    errors = {name: float((job() / reference - 1).abs().max()) for name, job in jobs.items()}
    timings = timing.interleaved(jobs, args.repeats)
    best.confirm()
    rows = [results.Row(name, timings[name], work(model, n, 10), errors[name]) for name in jobs]
    if n in args.jacobians:
        rows.append(jacobians_row(n, args))
        if not args.without_ours:
            rows[0].peak = memory.peak(memory_setup, "ours", n, args.threads).bytes
    table = results.report(f"all layers, n = {n}", rows, best)
    print(f"  largest relative difference from fp64: {max(errors.values()):.1e}")
    if max(errors.values()) > TOLERANCE:
        raise AssertionError(f"contenders differ by more than {TOLERANCE}: {errors}")
    return table


def jacobians_row(n: int, args: argparse.Namespace) -> results.Row:
    """Peak memory and time of one run in a fresh process; where that is short, the time of more runs."""
    model, x, _, target = problem(n)
    peak = memory.peak(memory_setup, "jacobians", n, args.threads)
    times = timing.Timing((peak.seconds,))
    if peak.seconds < 10:
        job = partial(jacobians.layer_by_layer, model, x, target)
        times = timing.interleaved({"jacobians": job}, 3, warmup=0)["jacobians"]
    return results.Row("torch.func Jacobians", times, work(model, n, 10), peak=peak.bytes)


def main() -> None:
    parser = arguments.parser(__doc__, quick="at n = 16", repeats=5)
    parser.add_argument("--jacobians", type=positive(int), nargs="*", default=[64, 256], help="n to run them at, too")
    parser.add_argument("--without-ours", action="store_true", help="the baselines alone")
    args = parser.parse_args()
    args.threads = machine.use_threads(args.threads)
    if args.quick:
        args.jacobians = [16]

    shapes = [(1000, 256, 1000), (2000, 256, 10000)]
    best = ceiling.measure([] if args.quick else shapes, (512,) * 3 if args.quick else ceiling.SQUARE)
    results.print_ceilings(best)
    tables = [compare(n, best, args) for n in ([16] if args.quick else [64, 256, 1000])]
    results.save("end_to_end", tables, best, args.output, args.quick)


if __name__ == "__main__":
    main()
