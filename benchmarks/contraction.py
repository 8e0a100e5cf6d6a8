"""Claim tested: with many outputs or few parameters, another order of contraction than tiles is many times as fast.

For one layer from its factors, ||C K C||_F^2 with global centering: as this package chooses, which includes the other
moments of an alignment, and in each order by itself (ahkernels.contraction). Beside them stands the identity of
"outputs first" in four lines of plain torch. All take the same numbers and must agree. Tiles that would take too long
are timed for a part of the samples, and scaled by their flops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

import ahkernels as ah
from ahkernels import inner_products
from ahkernels.contraction import outputs_first, parameters_first
from ahkernels.contraction.order import LayerShape, Order, flops, order_of
from benchmarks.common import results, script, timing
from benchmarks.common.ceilings import Ceilings, Work

TOLERANCE = 1e-5
MOST_FLOPS = 2e13  # of tiles that are timed as a whole
MOST_NUMBERS = 1 << 28  # of the plain torch contender's T


@dataclass(frozen=True)
class Case:
    """n samples, o outputs and a layer with d inputs and m pre-activations."""

    n: int
    o: int
    d: int
    m: int

    @property
    def title(self) -> str:
        return f"n = {self.n:,}, o = {self.o:,}, {self.d} -> {self.m}"

    @property
    def shape(self) -> LayerShape:
        return LayerShape(1, self.d, self.m, True)

    def kernel(self, n: int | None = None) -> ah.TangentKernel:
        """The kernel of random factors with a mean, for some of the samples."""
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(self.n, 1, self.d, generator=generator)[:n] + 0.3
        g = torch.randn(self.n, 1, self.o, self.m, generator=generator)[:n] + 0.3
        return ah.TangentKernel(ah.LayerFactors(a, g, True, unchecked=True), precision="highest")


CASES = [
    Case(256, 10, 256, 256),
    Case(1000, 10, 256, 256),
    Case(256, 30, 256, 256),
    Case(256, 100, 256, 256),
    Case(1000, 100, 256, 256),
    Case(128, 1000, 512, 512),
    Case(1000, 1000, 512, 512),
    Case(1000, 10, 32, 32),
    Case(10_000, 10, 32, 32),
    Case(10_000, 10, 100, 100),
    Case(10_000, 10, 256, 10),
    Case(10_000, 10, 8, 8),
    Case(1000, 100, 16, 16),
]
QUICK = [Case(40, 20, 8, 8), Case(30, 40, 6, 5)]


def by_tiles(kernel: ah.TangentKernel) -> float:
    """||C K C||_F^2 with global centering."""
    found = inner_products._by_tiles([kernel], labels(kernel), ["global"])
    return float(found["global"].squared_norm)


def as_chosen(kernel: ah.TangentKernel) -> float:
    return float(inner_products.tangent_moments([kernel], labels(kernel), ["global"])["global"].squared_norm)


def in_order(module: object, dtype: torch.dtype) -> Callable[[ah.TangentKernel], float]:
    return lambda kernel: module.squared_norms(kernel.batch, ["global"], dtype)["global"]


def in_plain_torch(kernel: ah.TangentKernel) -> float:
    """The same in plain torch: all of every T at once, in the dtype of the factors."""
    a, g = kernel.factors[0].forward[:, 0], kernel.factors[0].backward[:, 0]
    t = (g.mT @ g).flatten(1)
    p = a @ a.T + 1
    whole = (p.square() * (t @ t.T)).sum(dtype=torch.float64)
    means = torch.einsum("xoi,xi->xo", g, p @ g.sum(1)).double() / (len(g) * g.shape[1])
    return float(whole - 2 * means.numel() * means.square().sum() + means.numel() ** 2 * means.mean().square())


def labels(kernel: ah.TangentKernel) -> torch.Tensor:
    v = torch.linspace(-1, 1, kernel.n * kernel.o, dtype=torch.float64).view(kernel.n, kernel.o)
    return v - v.mean()


def compare(case: Case, best: Ceilings, repeats: int) -> dict[str, object]:
    """One table, with what the package does first."""
    kernel, counts = case.kernel(), flops(case.n, case.o, [case.shape])
    jobs: dict[str, Callable[[ah.TangentKernel], float]] = {"ours": as_chosen}
    if "outputs first" in counts:
        jobs["outputs first, float32"] = in_order(outputs_first, torch.float32)
        jobs["outputs first, float64"] = in_order(outputs_first, torch.float64)
    if "parameters first" in counts:
        jobs["parameters first"] = in_order(parameters_first, torch.float32)
    if case.n * case.m**2 <= MOST_NUMBERS:
        jobs["plain torch, outputs first"] = in_plain_torch
    samples, scale = case.n, 1.0
    if counts["tiles"] > MOST_FLOPS:
        samples = max(32, int(case.n * (MOST_FLOPS / counts["tiles"]) ** 0.5))
        scale = counts["tiles"] / flops(samples, case.o, [case.shape])["tiles"]
    else:
        jobs["tiles"] = by_tiles
    found = {name: job(kernel) for name, job in jobs.items()}
    reference = found["outputs first, float64"]
    errors = {name: abs(value / reference - 1) for name, value in found.items()}
    if max(errors.values()) > TOLERANCE:
        raise AssertionError(f"{case.title}: the orders differ by {errors}")
    timings = timing.interleaved({name: lambda job=job: job(kernel) for name, job in jobs.items()}, repeats, warmup=0)
    chosen: Order = order_of(case.n, case.o, [case.shape])
    title = f"{case.title}: {chosen}"
    if scale > 1:
        part = case.kernel(samples)
        timings["tiles"] = timing.interleaved({"tiles": lambda: by_tiles(part)}, 1, warmup=0)["tiles"]
        timings["tiles"] = timing.Timing(tuple(scale * one for one in timings["tiles"].rounds))
        title += f"; tiles scaled from {samples} samples by {scale:.0f}"
    work = Work(min(counts.values()), 4 * case.n * (case.d + case.o * case.m))
    rows = [results.Row(name, timings[name], work, errors.get(name)) for name in (*jobs, "tiles")[: len(timings)]]
    table = results.report(title, rows, best)
    return table | {"chosen": chosen, "flops": counts, "scaled_by": scale}


def main() -> None:
    parser = script.parser("contraction", __doc__, quick="on tiny problems", repeats=3)
    args = script.parse(parser)
    best = script.measure_ceilings(args)
    tables = [compare(case, best, args.repeats) for case in (QUICK if args.quick else CASES)]
    script.save(args, best, tables=tables)


if __name__ == "__main__":
    main()
