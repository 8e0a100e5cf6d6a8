"""Claim tested: image networks are measured at least 10 times as fast as by Jacobians, and n = 128 in 8 GiB.

ResNet18 and VGG19 with batch normalisation on 32 x 32 images, with 10 outputs unless others are asked for: the
alignment of every layer. Against torch.func Jacobians with contraction, a layer at a time and all at once, at their
best chunk of samples, where they fit in memory. Every contender runs alone in a fresh process, for its peak of memory.
The floor is the flops of the passes and of each layer's route at the best fp32 GEMM rate of this run.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.common import floor, jacobians, machine, memory, ours, results, script, timing, workload
from benchmarks.common.arguments import positive
from benchmarks.common.ceilings import Ceilings, Work

TOLERANCE = 1e-3
PRODUCTS = 30
ESTIMATED = f"ours, estimated from {PRODUCTS} products"


def setup(
    contender: str, name: str, n: int, outputs: int, chunk: int | None, threads: int
) -> Callable[[], torch.Tensor]:
    """A contender's job, warmed up on two samples (for memory.peak)."""
    machine.use_threads(threads)

    def job(size: int) -> Callable[[], torch.Tensor]:
        model, x, y = workload.image_network(name, size, outputs)
        if contender == "ours":
            return partial(ours.layerwise, model, x, y)
        if contender == ESTIMATED:
            return partial(ours.layerwise, model, x, y, PRODUCTS)
        target = torch.nn.functional.one_hot(y, outputs).float()
        method = jacobians.layer_by_layer if contender == "layer by layer" else jacobians.all_at_once
        return partial(method, model, x, target, chunk)

    job(2)()
    return job(n)


def work(name: str, n: int, outputs: int) -> Work:
    """A forward pass, o backward passes without gradients of parameters, and each layer's route."""
    model, x, _ = workload.image_network(name, n, outputs)
    return floor.image_network(model, x, outputs)


def compare(name: str, n: int, best: Ceilings, args: argparse.Namespace) -> dict[str, object]:
    """One table: ours, and the Jacobians at each chunk that was asked for."""
    rows, least = [], work(name, n, args.outputs)
    own = [("ours", None)] if n <= args.exact else []
    own += [(ESTIMATED, None)] if args.estimates else []
    for contender, chunk in [*own, *((c, k) for c in args.baselines for k in args.chunks)]:
        repeats = args.repeats if chunk is None else 1
        label = contender if chunk is None else f"{contender}, {chunk} at a time"
        if chunk is not None and n > args.most:
            continue
        peaks = [memory.peak(setup, contender, name, n, args.outputs, chunk, args.threads) for _ in range(repeats)]
        print(f"  {label}: {peaks[0].seconds:.2f} s, {peaks[0].bytes / 2**30:.2f} GiB", flush=True)
        times = timing.Timing(tuple(peak.seconds for peak in peaks))
        rows.append(results.Row(label, times, least, peak=max(peak.bytes for peak in peaks)))
    best.confirm()
    return results.report(f"{name}, n = {n}, {args.outputs} outputs, all layers", rows, best)


def agree(name: str) -> None:
    """Ours against the Jacobians on a few samples, or the run fails."""
    model, x, y = workload.image_network(name, 4)
    expected = jacobians.layer_by_layer(model, x, torch.nn.functional.one_hot(y, 10).float())
    names = list(jacobians.layers_of(model))
    found = dict(zip(ours.layer_names(model, x), ours.layerwise(model, x, y).tolist(), strict=True))
    error = max(abs(found[layer] - float(value)) for layer, value in zip(names, expected, strict=True))
    print(f"{name}: largest difference of an alignment from the Jacobians' {error:.1e}")
    if not error < TOLERANCE:
        raise AssertionError(f"{name}: alignments differ by {error:.1e}, more than {TOLERANCE}")


def main() -> None:
    parser = script.parser("vision_networks", __doc__, quick="at n = 2", repeats=3, of_repeats="runs of ours")
    parser.add_argument("--samples", type=positive(int), nargs="*", default=[16, 128], help="n")
    parser.add_argument("--outputs", type=positive(int), default=10, help="o")
    parser.add_argument("--exact", type=positive(int), default=128, help="largest n of exact alignments")
    parser.add_argument("--estimates", action="store_true", help=f"also alignments from {PRODUCTS} products")
    parser.add_argument("--most", type=positive(int), default=16, help="largest n of the Jacobians")
    parser.add_argument(
        "--chunks",
        type=positive(int),
        nargs="*",
        default=[1, 4, 16],
        help="samples at a time of the Jacobians",
    )
    parser.add_argument("--networks", nargs="*", default=["resnet18", "vgg19"])
    parser.add_argument("--baselines", nargs="*", default=["layer by layer", "all at once"])
    args = script.parse(parser)
    if args.quick:
        args.samples, args.chunks, args.repeats = [2], [2], 1
    best = script.measure_ceilings(args)
    tables = []
    for name in args.networks:
        agree(name)
        tables += [compare(name, n, best, args) for n in args.samples]
    script.save(args, best, tables=tables)


if __name__ == "__main__":
    main()
