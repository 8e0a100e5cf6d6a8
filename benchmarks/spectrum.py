"""Claim tested: the top 200 eigenvalues of a kernel of 100,000 rows need no K (40 GB in fp32), only products with it.

One layer of width 256 with 10 outputs: the top eigenvalues of C K C from products with the factors
(ahkernels.eigenpairs) at n = 10,000, and next to a dense decomposition of K in memory where that takes reasonable time
and memory. The floor is the flops of as many products as were taken, at the best fp64 GEMM rate of this run.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.common import machine, memory, ours, results, script, timing, workload
from benchmarks.common.arguments import positive
from benchmarks.common.ceilings import Ceilings, Work

OUTPUTS, WIDTH = 10, 256
AGREEMENT = 1e-5  # of the largest eigenvalue: K in memory has fp32 factors' own digits


def setup(contender: str, n: int, k: int, threads: int, found: Path):
    """The job of a contender, warmed up on few samples (for memory.peak); it leaves its eigenvalues in a file."""
    machine.use_threads(threads)

    def save(pairs) -> None:
        torch.save({"values": pairs.values, "residuals": pairs.residuals, "products": pairs.products}, found)

    def job(size: int, count: int):
        a, g, _ = workload.factors(size, OUTPUTS, WIDTH)
        if contender == "ours":
            return lambda: save(ours.eigenpairs(a, g, count))
        return lambda: torch.save({"values": ours.dense_eigenvalues(a, g)}, found)

    job(100, 3)()
    return job(n, k)


def compare(n: int, k: int, dense: bool, best: Ceilings, args: argparse.Namespace, folder: str) -> dict[str, object]:
    """One table: ours, and on request the dense decomposition, which must agree."""
    found = Path(folder) / "eigenvalues.pt"
    peaks = [memory.peak(setup, "ours", n, k, args.threads, found) for _ in range(args.repeats)]
    pairs = torch.load(found, weights_only=True)
    values, products = pairs["values"], pairs["products"]
    residual = float(pairs["residuals"].max() / values[0])
    flops = products * 2 * (2 * n * OUTPUTS * WIDTH + 2 * n * WIDTH**2)  # h and M a; M = sum h a^T
    in_fp32 = best.rate("fp32") / best.rate("fp64")  # floors are stated at the fp32 rate
    work = Work(flops * in_fp32, 4 * n * (WIDTH + OUTPUTS * WIDTH) * products)
    times = timing.Timing(tuple(peak.seconds for peak in peaks))
    rows = [results.Row("ours", times, work, residual, max(peak.bytes for peak in peaks))]
    if dense:
        other = memory.peak(setup, "dense", n, k, args.threads, found)
        error = float((torch.load(found, weights_only=True)["values"][:k] - values).abs().max() / values[0])
        rows.append(results.Row("eigvalsh of K", timing.Timing((other.seconds,)), work, error, other.bytes))
        if not error < AGREEMENT:
            raise AssertionError(f"n = {n}: eigenvalues differ by {error:.1e} of the largest")
    table = results.report(f"top {k} eigenvalues of C K C, n = {n}, {n * OUTPUTS} rows", rows, best)
    print(f"  {products} products; largest residual {residual:.1e} of the largest eigenvalue")
    return table | {"products": products, "largest_residual": residual, "eigenvalues": values.tolist()}


def main() -> None:
    parser = script.parser("spectrum", __doc__, quick="at n = 60", repeats=1, of_repeats="runs of ours")
    parser.add_argument("--k", type=positive(int), nargs="*", default=[200, 20, 1000], help="eigenvalues")
    parser.add_argument("--samples", type=positive(int), nargs="*", default=[10_000], help="n without a dense one")
    parser.add_argument(
        "--dense", type=positive(int), nargs="*", default=[1000, 2000], help="n of both, for the first k"
    )
    args = script.parse(parser)
    if args.quick:
        args.k, args.samples, args.dense = [5, 2], [80], [60]
    best = script.measure_ceilings(args)
    with tempfile.TemporaryDirectory() as folder:
        tables = [compare(n, k, False, best, args, folder) for n in args.samples for k in args.k]
        tables += [compare(n, args.k[0], True, best, args, folder) for n in args.dense]
    script.save(args, best, tables=tables)


if __name__ == "__main__":
    main()
