"""Claim tested: ||C K C||_F from a few products with K is within its own error bars, in a fraction of the exact pass.

One layer of width 256 with 10 outputs at n = 10,000: the time of estimates from some numbers of products, and with
tolerances, next to the exact pass over all tiles. The floor of a row is its own flops: half of the square, or those of
the products. At n = 2000 the estimator runs with many seeds at each number of products: how often the exact norm lies
within the 95% interval, the error bar and the error that there was.
"""

import math
from functools import partial

from benchmarks.common import ours, results, script, timing, workload
from benchmarks.common.arguments import positive
from benchmarks.common.ceilings import Ceilings, Work

OUTPUTS, WIDTH = 10, 256


def coverage(n: int, counts: list[int], seeds: int, exact: float) -> list[dict[str, float]]:
    """For each number of products, how often the interval holds the exact norm."""
    a, g, _ = workload.factors(n, OUTPUTS, WIDTH)
    found = []
    print(f"\nn = {n}, {seeds} seeds: exact norm within the 95% interval")
    for count in counts:
        estimates = [ours.estimated_norm(a, g, count, seed) for seed in range(seeds)]
        within = sum(low <= exact <= high for low, high in (one.interval() for one in estimates))
        error = math.sqrt(sum((one.value / exact - 1) ** 2 for one in estimates) / seeds)
        bar = math.sqrt(sum(one.relative_error**2 for one in estimates) / seeds)
        bias = sum(one.value / exact - 1 for one in estimates) / seeds
        print(
            f"  {estimates[0].products} products: {within} of {seeds}; relative error {error:.1e} (mean {bias:+.1e}), "
            f"stated standard error {bar:.1e}",
            flush=True,
        )
        found.append(
            {
                "products": estimates[0].products,
                "seeds": seeds,
                "within_95_percent_interval": within,
                "relative_error_rms": error,
                "relative_error_mean": bias,
                "relative_standard_error_rms": bar,
            }
        )
    return found


def cost(n: int, counts: list[int], tolerances: list[float], repeats: int, best: Ceilings) -> dict[str, object]:
    """Time of the exact pass, and of the estimates, with the relative error of one of each."""
    a, g, _ = workload.factors(n, OUTPUTS, WIDTH)
    exact = ours.norm(a, g)
    errors = {"exact": 0.0}
    read = 4 * n * (WIDTH + OUTPUTS * WIDTH)
    works = {"exact": Work((n * OUTPUTS) ** 2 * WIDTH + n**2 * WIDTH, read)}
    jobs = {"exact": lambda: ours.norm(a, g)}
    for name, estimate in (
        *((f"{count} products", partial(ours.estimated_norm, a, g, count, seed=0)) for count in counts),
        *((f"tolerance {one:g}", partial(ours.norm_within, a, g, one, seed=0)) for one in tolerances),
    ):
        found = estimate()
        title = name if name.endswith("products") else f"{name}: {found.products} products"
        works[title] = Work(found.products * 2 * (2 * n * OUTPUTS * WIDTH + 2 * n * WIDTH**2), read * 2)
        jobs[title] = estimate
        errors[title] = abs(found.value / exact - 1)
    times = timing.interleaved(jobs, repeats, warmup=0)
    rows = [results.Row(name, times[name], works[name], errors[name]) for name in jobs]
    return results.report(f"||C K C||_F, n = {n}, {n * OUTPUTS} rows", rows, best)


def main() -> None:
    parser = script.parser("estimator", __doc__, quick="at n = 60", repeats=3)
    parser.add_argument("--samples", type=positive(int), default=10_000, help="n")
    parser.add_argument("--products", type=positive(int), nargs="*", default=[30, 90], help="numbers of products")
    parser.add_argument("--tolerances", type=positive(float), nargs="*", default=[1e-3, 1e-4])
    parser.add_argument("--covered", type=positive(int), default=2000, help="n of the intervals")
    parser.add_argument("--seeds", type=positive(int), default=300)
    args = script.parse(parser)
    if args.quick:
        args.samples, args.covered, args.seeds = 60, 60, 10
    best = script.measure_ceilings(args)
    table = cost(args.samples, args.products, args.tolerances, args.repeats, best)
    a, g, _ = workload.factors(args.covered, OUTPUTS, WIDTH)
    exact = ours.norm(a, g)
    covered = coverage(args.covered, args.products, args.seeds, exact)
    script.save(
        args, best, tables=[table | {"samples_of_coverage": args.covered, "exact_norm": exact, "coverage": covered}]
    )


if __name__ == "__main__":
    main()
