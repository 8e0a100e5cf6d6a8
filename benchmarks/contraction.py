"""Claim tested: with many outputs or few parameters, another order of contraction than tiles is many times as fast.

First for one layer from its factors, ||C K C||_F^2 with global centering: as this package chooses, which includes the
other moments of an alignment, and in each order by itself (ahkernels.contraction). Beside them stands the identity of
"outputs first" in four lines of plain torch. All take the same numbers and must agree. Tiles that would take too long
are timed for a part of the samples, and scaled by their flops.

Then for all layers of a network of depth 10, from its forward and backward pass on. Last, how time and memory beyond
the factors grow with the number of outputs, and with that of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch

import ahkernels as ah
from ahkernels import inner_products
from ahkernels.contraction import best_order, outputs_first, parameters_first
from ahkernels.contraction.order import LayerShape, Order, flops, order_of
from benchmarks.common import memory, ours, plain_layer, plain_network, results, script, timing, workload
from benchmarks.common.ceilings import Ceilings, Work

TOLERANCE = 1e-5
MOST_FLOPS = 4e11  # of tiles that are timed as a whole
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
        """The kernel of some of the samples: of the middle layer of an MLP, or of random factors with a mean."""
        if self.d == self.m:
            a, g, _ = workload.factors(self.n, self.o, self.m)
        else:
            generator = torch.Generator().manual_seed(0)
            a = torch.randn(self.n, self.d, generator=generator) + 0.3
            g = torch.randn(self.n, self.o, self.m, generator=generator) + 0.3
        return ah.TangentKernel(ah.LayerFactors(a[:n, None], g[:n, None], True, unchecked=True), precision="highest")


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
    Case(10_000, 10, 256, 10),
    Case(10_000, 10, 8, 8),
    Case(1000, 100, 16, 16),
]
NETWORKS = [
    (256, 100, 256),
    (1000, 100, 256),
    (128, 1000, 512),
    (1000, 10, 32),
    (10_000, 10, 32),
    (1000, 10, 100),
]
GROWTH = {
    "outputs at n = 256, width 256": [Case(256, o, 256, 256) for o in (2, 10, 30, 100, 300, 1000)],
    "samples at o = 10, width 32": [Case(n, 10, 32, 32) for n in (1000, 4000, 16_000, 60_000)],
    "samples at o = 100, width 32": [Case(n, 100, 32, 32) for n in (1000, 4000, 16_000, 60_000)],
}
QUICK = [Case(40, 20, 8, 8), Case(30, 40, 6, 5)]
QUICK_NETWORKS = [(20, 15, 8)]


def by_tiles(kernel: ah.TangentKernel) -> float:
    """||C K C||_F^2 with global centering."""
    found = inner_products._by_tiles([kernel], labels(kernel), ["global"])
    return float(found["global"].squared_norm)


def as_chosen(kernel: ah.TangentKernel) -> float:
    return float(inner_products.tangent_moments([kernel], labels(kernel), ["global"])["global"].squared_norm)


def in_order(module: object, dtype: torch.dtype) -> Callable[[ah.TangentKernel], float]:
    return lambda kernel: float(module.inner_products(kernel.batch, ["global"], dtype, kernel.samples)["global"])


def in_plain_torch(a: torch.Tensor, g: torch.Tensor, bias: float) -> float:
    """The same from a [n, d] and g [n, o, m] in plain torch: all of every T at once, in the dtype of the factors."""
    t = (g.mT @ g).flatten(1)
    p = a @ a.T + bias
    whole = (p.square() * (t @ t.T)).sum(dtype=torch.float64)
    means = torch.einsum("xoi,xi->xo", g, p @ g.sum(1)).double() / (len(g) * g.shape[1])
    return float(whole - 2 * means.numel() * means.square().sum() + means.numel() ** 2 * means.mean().square())


def of_kernel_in_plain_torch(kernel: ah.TangentKernel) -> float:
    (factors,) = kernel.factors
    return in_plain_torch(factors.forward[:, 0], factors.backward[:, 0], float(factors.bias))


def alignment_in_plain_torch(a: torch.Tensor, g: torch.Tensor, y: torch.Tensor) -> float:
    """The alignment of a layer without a bias; y one-hot [n, o]."""
    return plain_layer.thin_products(a, g, y)[1] / in_plain_torch(a, g, 0.0) ** 0.5


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
        jobs["plain torch, outputs first"] = of_kernel_in_plain_torch
    samples, scale = case.n, 1.0
    if counts["tiles"] > MOST_FLOPS:
        samples = max(64, int(case.n * (MOST_FLOPS / counts["tiles"]) ** 0.5))
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


def network(
    n: int, o: int, width: int, best: Ceilings, repeats: int, memory_budget: int = 2 << 30
) -> dict[str, object]:
    """One table: alignment of all layers of a network, ours within a memory budget in bytes."""
    model, (x, y) = workload.mlp(10, width, outputs=o), workload.images(n, outputs=o)
    target = torch.nn.functional.one_hot(y, o).float()
    shapes = [LayerShape(1, *reversed(weight.shape), False) for weight in model.parameters()]
    tiles = sum(flops(n, o, [one])["tiles"] for one in shapes)
    passes = 2 * n * (1 + o) * sum(weight.numel() for weight in model.parameters())

    def by_hand() -> torch.Tensor:
        return plain_network.layerwise(plain_network.by_hand, alignment_in_plain_torch, model, x, target)

    def alignments() -> torch.Tensor:
        return ours.layerwise_within(memory_budget, model, x, y, precision="highest")

    def ours_by_tiles() -> torch.Tensor:
        with mock.patch.object(best_order, "order_of", lambda *_, **__: "tiles"):
            return alignments()

    jobs = {"ours": alignments}
    if n * width**2 <= MOST_NUMBERS:
        jobs["plain torch, outputs first"] = by_hand
    if tiles <= 4 * MOST_FLOPS:
        jobs["ours, by tiles"] = ours_by_tiles
    found = {name: job() for name, job in jobs.items()}
    errors = {name: float((value / found["ours"] - 1).abs().max()) for name, value in found.items()}
    timings = timing.interleaved(jobs, repeats, warmup=0)
    least = sum(min(flops(n, o, [one]).values()) for one in shapes)
    rows = [results.Row(name, timings[name], Work(least + passes, 0), errors[name]) for name in jobs]
    orders = sorted({order_of(n, o, [one]) for one in shapes})
    title = f"all layers of an MLP of depth 10, width {width}, n = {n:,}, o = {o:,}: {', '.join(orders)}"
    table = results.report(title, rows, best)
    return table | {"tiles_flops": tiles, "orders": orders, "memory_budget": memory_budget}


def growth(title: str, cases: Sequence[Case]) -> dict[str, object]:
    """How time and memory of one layer grow, as chosen and by tiles: seconds, MiB and the exponents of time."""
    sizes = [case.o if title.startswith("outputs") else case.n for case in cases]
    seconds: dict[str, dict[int, float]] = {"ours": {}, "tiles": {}}
    mebibytes: dict[str, dict[int, float]] = {"ours": {}, "tiles": {}}
    for size, case in zip(sizes, cases, strict=True):
        kernel = case.kernel()
        jobs = {"ours": as_chosen}
        if flops(case.n, case.o, [case.shape])["tiles"] <= MOST_FLOPS:
            jobs["tiles"] = by_tiles
        for name, job in jobs.items():
            held = memory.reset_high_water_mark()
            times = timing.interleaved({name: lambda job=job, kernel=kernel: job(kernel)}, 1, warmup=case.n <= 4000)
            seconds[name][size] = times[name].median
            mebibytes[name][size] = (memory.high_water_mark() - held) / 2**20
        del kernel
    exponents = {name: exponent(times) for name, times in seconds.items() if len(times) > 1}
    print(f"\ngrowth with the {title}:")
    for name, times in seconds.items():
        shown = ", ".join(f"{size:,}: {one:.3g} s, {mebibytes[name][size]:.0f} MiB" for size, one in times.items())
        print(f"  {name}: {shown}; exponent of time {exponents.get(name, float('nan')):.2f}", flush=True)
    return {"title": title, "seconds": seconds, "mebibytes": mebibytes, "exponents": exponents}


def exponent(times: Mapping[int, float]) -> float:
    """The slope of log time over log size, of the larger half of the sizes."""
    first = max(0, min(len(times) // 2 - 1, len(times) - 2))
    sizes, seconds = np.log(list(times))[first:], np.log(list(times.values()))[first:]
    return float(np.polyfit(sizes, seconds, 1)[0])


def sizes(text: str) -> tuple[int, int, int]:
    """An argument such as 1000,10,100."""
    n, o, width = map(int, text.split(","))
    return n, o, width


def main() -> None:
    parser = script.parser("contraction", __doc__, quick="on tiny problems", repeats=3)
    parser.add_argument("--networks", type=sizes, nargs="+", metavar="N,O,WIDTH", help="time these networks alone")
    parser.add_argument("--memory-budget", type=float, metavar="GIB", default=2, help="of our calls for --networks")
    args = script.parse(parser)
    best = script.measure_ceilings(args)
    if args.networks:
        budget = int(args.memory_budget * 2**30)
        script.save(args, best, networks=[network(*one, best, args.repeats, budget) for one in args.networks])
        return
    layers = [compare(case, best, args.repeats) for case in (QUICK if args.quick else CASES)]
    networks = [network(*one, best, args.repeats) for one in (QUICK_NETWORKS if args.quick else NETWORKS)]
    grown = [growth(title, cases[:2] if args.quick else cases) for title, cases in GROWTH.items()]
    script.save(args, best, layers=layers, networks=networks, growth=grown)


if __name__ == "__main__":
    main()
