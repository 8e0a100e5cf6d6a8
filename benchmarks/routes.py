"""Claim tested: the route that is chosen for a layer with positions is within 25% of the fastest.

For layer shapes from few positions with many channels to many positions with few, the alignment from the layer's
factors by every route (ahkernels.capture.route): pairs of positions, the Jacobian formed once, and the Jacobian in
slices. All routes start from the same factors, take the same numbers, and must agree.
"""

from dataclasses import dataclass

import torch

from ahkernels import ops
from ahkernels.capture.route import Route, Shape, choose_route, jacobian, routes
from benchmarks.common import results, script, timing
from benchmarks.common.arguments import positive
from benchmarks.common.ceilings import Ceilings, Work

OUTPUTS = 10
MOST_BYTES = 1 << 31  # of a Jacobian, which is also the default memory budget
# A route is left out if it takes more flops than this, and more than so many times those of the chosen route.
MOST_FLOPS, MOST_TIMES = 2e10, 3
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Layer:
    """A layer's name and its positions and factors."""

    name: str
    s: int
    d: int
    m: int
    bias: bool = False

    def shape(self, n: int) -> Shape:
        return Shape(n, OUTPUTS, OUTPUTS**2, self.s, self.d, self.m, self.bias)


LAYERS = [
    Layer("linear, 2 calls", 2, 256, 256),
    Layer("linear, 4 tokens", 4, 64, 64, True),
    Layer("linear, 17 tokens", 17, 64, 256, True),
    Layer("linear, 64 tokens", 64, 128, 128, True),
    Layer("linear, 196 tokens", 196, 192, 192, True),
    Layer("conv 3 -> 64, 32 x 32", 1024, 27, 64),
    Layer("conv 16 -> 16, 16 x 16", 256, 144, 16),
    Layer("conv 64 -> 64, 16 x 16", 256, 576, 64),
    Layer("conv 128 -> 128, 8 x 8", 64, 1152, 128),
    Layer("conv 256 -> 256, 4 x 4", 16, 2304, 256),
    Layer("conv 512 -> 512, 2 x 2", 4, 4608, 512),
    Layer("conv 64 -> 16, 1 x 1, 8 x 8", 64, 64, 16),
    Layer("conv 8 -> 8, 4 x 4", 16, 72, 8),
]


def moments(a: torch.Tensor, g: torch.Tensor, bias: bool, v: torch.Tensor, by_jacobian: bool) -> torch.Tensor:
    """The moments that an alignment takes, [1, 4]."""
    (found,) = ops.tangent_moments(ops.KernelBatch([a], [g], [float(bias)], [by_jacobian], [1]), v, "highest")
    return found.stacked()


def job(route: Route, layer: Layer, a: torch.Tensor, g: torch.Tensor, v: torch.Tensor) -> timing.Job:
    """The alignment's moments by one route from a [n, s, d] and g [r, n, s, m], as capture has them."""
    backward = g.permute(1, 2, 0, 3)
    if route.name != "jacobian":
        return lambda: moments(a, backward, layer.bias, v, route.name == "jacobian slices")

    def by_jacobian() -> torch.Tensor:
        j = jacobian(a, g, bias=layer.bias).permute(1, 0, 2).unsqueeze(1)
        return moments(a.new_empty(len(a), 1, 0), j, True, v, False)

    return by_jacobian


def compare(layer: Layer, n: int, best: Ceilings, repeats: int) -> dict[str, object]:
    """One table: the routes that can be taken, the chosen one first."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, layer.s, layer.d, generator=generator)
    g = torch.randn(OUTPUTS, n, layer.s, layer.m, generator=generator)
    v = torch.randn(n, OUTPUTS, 1, generator=generator, dtype=torch.float64)
    v -= v.mean()
    shape = layer.shape(n)
    chosen = choose_route(shape, MOST_BYTES // 4, MOST_BYTES // 4)
    most_flops = max(MOST_FLOPS, MOST_TIMES * chosen.flops)
    taken = [one for one in routes(shape) if one.numbers <= MOST_BYTES // 4 and one.flops <= most_flops]
    taken.sort(key=lambda one: one.name != chosen.name)
    jobs = {one.name: job(one, layer, a, g, v) for one in taken}
    found = {name: one()[0] for name, one in jobs.items()}
    error = max(float((numbers / found[chosen.name] - 1).abs()[1:3].max()) for numbers in found.values())
    if error > TOLERANCE:
        raise AssertionError(f"{layer.name}: the routes differ by {error:.1e}")
    timings = timing.interleaved(jobs, repeats)
    work = Work(min(one.flops for one in taken), 4 * n * layer.s * (layer.d + OUTPUTS * layer.m))
    rows = [results.Row(name, timings[name], work) for name in jobs]
    fastest = min(timings.values(), key=lambda one: one.median)
    table = results.report(f"{layer.name}, n = {n}: chosen {chosen.name}", rows, best)
    loss = timings[chosen.name].median / fastest.median - 1
    print(f"  {100 * loss:.0f}% slower than the fastest")
    return table | {"chosen": chosen.name, "loss": loss, "flops": {one.name: one.flops for one in taken}}


def main() -> None:
    parser = script.parser("routes", __doc__, quick="at n = 8", repeats=3)
    parser.add_argument("--samples", type=positive(int), nargs="*", default=[16, 64, 256], help="n")
    args = script.parse(parser)
    best = script.measure_ceilings(args)
    samples = [8] if args.quick else args.samples
    tables = [compare(layer, n, best, 1 if args.quick else args.repeats) for layer in LAYERS for n in samples]
    losses = sorted((table["loss"], table["title"]) for table in tables)
    print(f"\n{sum(loss <= 0.25 for loss, _ in losses)} of {len(losses)} within 25%; worst: {losses[-1][1]}")
    script.save(args, best, tables=tables)


if __name__ == "__main__":
    main()
