"""Claim tested: alignments of all layers on a whole training set, exactly, in a time that the counts of flops foretell.

An MLP of depth 10 with the training images of a set (digits without `--data-dir`), 10 outputs, at initialisation.
Every entry of kernels of n o rows enters; none is in memory. The floor is the flops of the passes and of each layer's
cheapest order of contraction, at the best fp32 GEMM rate of this run.
"""

import time
from pathlib import Path

from ahkernels.contraction.order import LayerShape, flops
from benchmarks.common import memory, ours, results, script, timing, workload
from benchmarks.common.arguments import positive
from benchmarks.common.ceilings import Work
from experiments.common import data

OUTPUTS, DEPTH = 10, 10


def main() -> None:
    parser = script.parser("whole_set", __doc__, quick="on few digits", repeats=1)
    parser.add_argument("--data-dir", type=Path, help="folder that holds the data (default: digits)")
    parser.add_argument("--dataset", default="fashion-mnist", help="set in --data-dir")
    parser.add_argument("--width", type=positive(int), default=100, help="units in a hidden layer")
    args = script.parse(parser)
    best = script.measure_ceilings(args)
    found = data.load(args.dataset, args.data_dir) if args.data_dir else data.load("digits")
    x, y = found.train_x.flatten(1), found.train_y
    if args.quick:
        x, y = x[:200], y[:200]
    n = len(x)
    model = workload.mlp(DEPTH, args.width, inputs=x.shape[1], outputs=OUTPUTS)
    weights = list(model.parameters())
    shapes = [LayerShape(1, weight.shape[1], weight.shape[0], False) for weight in weights]
    least = sum(min(flops(n, OUTPUTS, [shape]).values()) for shape in shapes)
    passes = 2 * n * (1 + OUTPUTS) * sum(weight.numel() for weight in weights)
    ours.layerwise(model, x[:64], y[:64])  # libraries and threads start with the first call
    held, start = memory.reset_high_water_mark(), time.perf_counter()
    alignments = ours.layerwise(model, x, y)
    seconds, peak = time.perf_counter() - start, memory.high_water_mark() - held
    rows = [results.Row("ours", timing.Timing((seconds,)), Work(least + passes, 0), peak=peak)]
    table = results.report(f"all layers of an MLP of depth {DEPTH}, width {args.width}, n = {n:,}", rows, best)
    script.save(args, best, tables=[table | {"alignments": alignments.tolist(), "n": n}])


if __name__ == "__main__":
    main()
