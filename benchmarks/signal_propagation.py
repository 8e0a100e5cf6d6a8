"""Claim tested: correlations and gradient products of a ReLU network come at depth 10^7 as fast as at depth 10^3.

64 pairs of inputs, six layers asked for, infinite width. Contenders: ours (ahkernels.signal_propagation.propagate);
numpy, layer by layer in gamma = 1 - c; and a loop over Python floats, pair by pair. Depths beyond --slow-depth are
ours alone. The floor is what is asked for, written once.
"""

import argparse
import math
from functools import partial

import numpy as np

from ahkernels import signal_propagation as sp
from benchmarks.common import results, script, timing
from benchmarks.common.arguments import positive
from benchmarks.common.ceilings import Ceilings, Work

PAIRS = 64
TOLERANCE = 1e-9
GAMMA = np.linspace(0.05, 1.95, PAIRS)


def layers_of(depth: int) -> list[int]:
    """The layers that are asked for."""
    return sorted({1, depth // 100, depth // 10, depth // 2, depth - 1, depth})


def ours(depth: int) -> np.ndarray:
    """Gamma and log of the product of slopes from layer 1, [2, layers, pairs]."""
    found = sp.propagate(sp.Network(), sp.InputPairs(GAMMA), layers_of(depth))
    log = found.log_backward_information(depth)[1]
    return np.stack([found.gamma, log[0] - log])


def by_layer(depth: int) -> np.ndarray:
    """The values of `ours` in numpy, layer by layer."""
    gamma, log, found = GAMMA, np.zeros(PAIRS), []
    wanted = set(layers_of(depth))
    for layer in range(1, depth + 1):
        if layer in wanted:
            found.append((gamma, log))
        t = 2 * np.arcsin(np.sqrt(gamma / 2))
        log = log + np.log1p(-t / np.pi)
        gamma = gamma - np.where(t < 0.02, t**3 / 3 - t**5 / 30 + t**7 / 840, np.sin(t) - t * np.cos(t)) / np.pi
    return np.moveaxis(np.array(found), 1, 0)


def by_pair(depth: int) -> np.ndarray:
    """The values of `ours` in Python floats, pair by pair."""
    wanted, found = set(layers_of(depth)), []
    for start in GAMMA.tolist():
        gamma, log, values = start, 0.0, []
        for layer in range(1, depth + 1):
            if layer in wanted:
                values.append((gamma, log))
            t = 2 * math.asin(math.sqrt(gamma / 2))
            log += math.log1p(-t / math.pi)
            small = t**3 / 3 - t**5 / 30 + t**7 / 840 if t < 0.02 else math.sin(t) - t * math.cos(t)
            gamma -= small / math.pi
        found.append(values)
    return np.moveaxis(np.array(found), (0, 1, 2), (2, 1, 0))


def compare(depth: int, best: Ceilings, args: argparse.Namespace) -> dict[str, object]:
    """One table; all must agree."""
    jobs = {"ours": partial(ours, depth)}
    if depth <= args.slow_depth:
        jobs |= {"numpy, layer by layer": partial(by_layer, depth), "Python, pair by pair": partial(by_pair, depth)}
    found = {name: job() for name, job in jobs.items()}
    if not all(np.allclose(value, found["ours"], rtol=TOLERANCE, atol=0) for value in found.values()):
        raise AssertionError(f"depth {depth}: gamma or products differ by more than {TOLERANCE}")
    times = timing.interleaved(jobs, args.repeats, warmup=0)
    work = Work(0, 8 * found["ours"].size)
    rows = [results.Row(name, times[name], work) for name in jobs]
    return results.report(f"depth {depth:,}, {PAIRS} pairs", rows, best)


def main() -> None:
    parser = script.parser("signal_propagation", __doc__, quick="at depth 1000", repeats=3)
    parser.add_argument("--depths", type=positive(int), nargs="*", default=[10**3, 10**5, 10**7])
    parser.add_argument("--slow-depth", type=positive(int), default=10**5, help="the most for all but ours")
    args = script.parse(parser)
    if args.quick:
        args.depths, args.repeats = [1000], 1
    best = script.measure_ceilings(args)
    tables = [compare(depth, best, args) for depth in args.depths]
    script.save(args, best, tables=tables)


if __name__ == "__main__":
    main()
