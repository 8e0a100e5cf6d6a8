"""Claim tested: image networks are measured at least 10 times as fast as by Jacobians, and n = 128 in 8 GiB.

ResNet18 and VGG19 with batch normalisation on 32 x 32 images, 10 outputs: the alignment of every layer. Against
torch.func Jacobians with contraction, a layer at a time and all at once, at their best chunk of samples, where they
fit in memory. Every contender runs alone in a fresh process, for its peak of memory. The floor is the flops of the
passes and of each layer's route at the best fp32 GEMM rate of this run.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import arguments, floor, jacobians, machine, memory, results, timing
from common import ceilings as ceiling
from common.ceilings import Work
from comparison.options import positive

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
OUTPUTS = 10
TOLERANCE = 1e-3


def problem(name: str, n: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """Network at initialisation, x [n, 3, 32, 32] around a template for each class, y [n]."""
    sys.path.insert(0, str(EXPERIMENTS / "common"))
    import vision

    model = getattr(vision, name)(OUTPUTS, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % OUTPUTS
    templates = torch.randn(OUTPUTS, 3, 32, 32, generator=generator)
    return model, 0.5 * templates[y] + torch.randn(n, 3, 32, 32, generator=generator), y


def setup(contender: str, name: str, n: int, chunk: int | None, threads: int) -> Callable[[], torch.Tensor]:
    """A contender's job, warmed up on two samples (for memory.peak)."""
    machine.use_threads(threads)

    def job(size: int) -> Callable[[], torch.Tensor]:
        model, x, y = problem(name, size)
        if contender == "ours":
            from common import ours

            return partial(ours.layerwise, model, x, y)
        target = torch.nn.functional.one_hot(y, OUTPUTS).float()
        method = jacobians.layer_by_layer if contender == "layer by layer" else jacobians.all_at_once
        return partial(method, model, x, target, chunk)

    job(2)()
    return job(n)


def work(name: str, n: int) -> Work:
    """A forward pass, o backward passes without gradients of parameters, and each layer's route."""
    model, x, _ = problem(name, n)
    return floor.image_network(model, x, OUTPUTS)


def compare(name: str, n: int, best: ceiling.Ceilings, args: argparse.Namespace) -> dict[str, object]:
    """One table: ours, and the Jacobians at each chunk that was asked for."""
    rows, least = [], work(name, n)
    for contender, chunk in [("ours", None), *((c, k) for c in args.baselines for k in args.chunks)]:
        repeats = args.repeats if contender == "ours" else 1
        label = contender if chunk is None else f"{contender}, {chunk} at a time"
        if contender != "ours" and n > args.most:
            continue
        peaks = [memory.peak(setup, contender, name, n, chunk, args.threads) for _ in range(repeats)]
        print(f"  {label}: {peaks[0].seconds:.2f} s, {peaks[0].bytes / 2**30:.2f} GiB", flush=True)
        times = timing.Timing(tuple(peak.seconds for peak in peaks))
        rows.append(results.Row(label, times, least, peak=max(peak.bytes for peak in peaks)))
    best.confirm()
    return results.report(f"{name}, n = {n}, all layers", rows, best)


def agree(name: str) -> None:
    """Ours against the Jacobians on a few samples, or the run fails."""
    from common import ours

    model, x, y = problem(name, 4)
    expected = jacobians.layer_by_layer(model, x, torch.nn.functional.one_hot(y, OUTPUTS).float())
    names = list(jacobians.layers_of(model))
    found = dict(zip(ours.layer_names(model, x), ours.layerwise(model, x, y).tolist(), strict=True))
    error = max(abs(found[layer] - float(value)) for layer, value in zip(names, expected, strict=True))
    print(f"{name}: largest difference of an alignment from the Jacobians' {error:.1e}")
    if not error < TOLERANCE:
        raise AssertionError(f"{name}: alignments differ by {error:.1e}, more than {TOLERANCE}")


def main() -> None:
    parser = arguments.parser(__doc__, quick="at n = 2", repeats=3, of_repeats="runs of ours")
    parser.add_argument("--samples", type=positive(int), nargs="*", default=[16, 128], help="n")
    parser.add_argument("--most", type=positive(int), default=16, help="largest n of the Jacobians")
    parser.add_argument(
        "--chunks", type=positive(int), nargs="*", default=[1, 4, 16], help="samples at a time of the Jacobians"
    )
    parser.add_argument("--networks", nargs="*", default=["resnet18", "vgg19"])
    parser.add_argument("--baselines", nargs="*", default=["layer by layer", "all at once"])
    args = parser.parse_args()
    args.threads = machine.use_threads(args.threads)
    if args.quick:
        args.samples, args.chunks, args.repeats = [2], [2], 1
    best = ceiling.measure([], (512,) * 3 if args.quick else ceiling.SQUARE)
    results.print_ceilings(best)
    tables = []
    for name in args.networks:
        agree(name)
        tables += [compare(name, n, best, args) for n in args.samples]
    results.save("vision_networks", tables, best, args.output, args.quick)


if __name__ == "__main__":
    main()
