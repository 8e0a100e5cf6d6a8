"""Claim tested: how far each CPU op is from its floor, over sizes (n, o, N) of one layer.

The floor is the op's useful flops (common/op_problems.py) at the best GEMM rate measured in this run, in the precision
that the op computes in, or the factors read once at the copy bandwidth, whichever takes longer.
"""

from benchmarks.common import script, tables, timing
from benchmarks.common.ceilings import PANELS
from benchmarks.common.op_problems import OpProblem

SIZES = [(64, 10, 256), (256, 10, 256), (1000, 10, 256), (1000, 1, 256), (256, 10, 1024), (60, 100, 256)]
DOUBLE = ("tangent_product", "tangent_cross_product", "tangent_quadratic", "tangent_diagonal")
COLUMNS = [
    *("op", "n", "o", "N", "precision", "time, ms", "useful Gflop", "Gflop/s", "of the best GEMM, %"),
    *("floor by bytes, ms", "floor, % of time"),
]
TEXT = (
    "One layer of N inputs and N outputs in a network of o outputs, a vector of one column; medians of {repeats} "
    "rounds. Best GEMM of the run: fp32 {fp32:.0f} Gflop/s, fp64 {fp64:.0f} Gflop/s; copy {bandwidth:.1f} GB/s. "
    "Products with one vector have few flops for each number of the factors: their floor is by bytes."
)


def main() -> None:
    parser = script.parser("op_floors", __doc__, quick="at one small size", repeats=5)
    args = script.parse(parser)
    best = script.measure_ceilings(args, PANELS)
    measured = []
    for n, o, width in [(20, 3, 16)] if args.quick else SIZES:
        jobs = OpProblem(n, o, width, width).jobs()
        times = timing.interleaved({op: job for op, (job, _) in jobs.items()}, args.repeats)
        measured += [(op, n, o, width, flops, times[op]) for op, (_, flops) in jobs.items()]
    best.confirm()

    rows: list[list[tables.Cell]] = []
    for op, n, o, width, flops, timed in measured:
        # Kernels over samples alone have their row sums in fp64, too: csrc/cpu/tiles/row_sums.h.
        precision = "fp64" if op in DOUBLE or (op == "tangent_row_sums" and o == 1) else "fp32"
        rate, by_bytes = flops / timed.median, 4 * n * width * (1 + o) / best.bandwidth
        share = rate / best.rate(precision)
        cells = [1e3 * timed.median, flops / 1e9, rate / 1e9, 100 * share, 1e3 * by_bytes]
        of_floor = 100 * max(share, by_bytes / timed.median)
        rows.append([op, n, o, width, precision, *map(tables.rounded, [*cells, of_floor])])
    title = "Distance of each op to its floor"
    tables.show(title, COLUMNS, rows)
    rates = {kind: best.rate(kind) / 1e9 for kind in ("fp32", "fp64")}
    text = TEXT.format(repeats=args.repeats, bandwidth=best.bandwidth / 1e9, **rates)
    raw = [{"op": op, "n": n, "o": o, "N": width, "rounds_s": times.rounds} for op, n, o, width, _, times in measured]
    script.save(args, best, **tables.record(title, text, COLUMNS, rows), rounds_s=raw)


if __name__ == "__main__":
    main()
