"""Claim tested: holding a capture against autograd costs a quarter of a small call and a twentieth of a large one.

The alignment of all layers without a certificate, with one, and with the default of one in 32 calls, which is what a
tracker pays on average; and the smallest fault that is found: the gradients at one layer, multiplied by 1 + e for all
samples or for one of them, of the layer where the fault is hardest to find.
"""

import argparse
import copy
import statistics
import warnings
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.common import ours, script, tables, timing, workload

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
COSTS = ["network", "n", "without, ms", "certified, ms", "ratio", "one in 32 calls, ms", "ratio on average"]
FAULTS = ["network", "n", "fault in", "float64", "float32", "float16", "bfloat16"]
TEXT = (
    "Medians of {rounds} rounds of the alignment of all layers, in turn. A certificate takes a backward pass with the "
    "gradients of parameters and one without, 6 flops for each weight and sample, and one evaluation of a sample. The "
    "average over 32 calls is (certified + 31 without) / 32. Faults: the least e of a grid with two points in a decade "
    "down to which all are found in every layer; none where e = 1 is not."
)


def cost(name: str, n: int, job: Callable[[int], object], repeats: int) -> list[tables.Cell]:
    """One row of costs; `job` takes `certify`."""
    times = timing.interleaved({"without": partial(job, 0), "certified": partial(job, 1)}, repeats, warmup=2)
    without, certified = (statistics.median(times[which].rounds) for which in ("without", "certified"))
    average = (certified + 31 * without) / 32
    milliseconds = [tables.rounded(1e3 * seconds) for seconds in (without, certified)]
    return [
        *(name, n, *milliseconds, round(certified / without, 3)),
        *(tables.rounded(1e3 * average), round(average / without, 3)),
    ]


def networks(quick: bool) -> dict[str, tuple[torch.nn.Module, torch.Tensor]]:
    """Small networks whose faults are looked for."""
    torch.manual_seed(0)
    if quick:
        return {"perceptron": (workload.mlp(2, 8, 5), torch.randn(8, 5))}
    convolutional = torch.nn.Sequential(
        *(torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU()),
        *(torch.nn.AvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(72, 10)),
    )
    return {
        "perceptron": (workload.mlp(10, 64, 50), torch.randn(64, 50)),
        "convolutional": (convolutional, torch.randn(32, 2, 6, 6)),
    }


def smallest_fault(model: torch.nn.Module, x: torch.Tensor, samples: slice) -> float | None:
    """The least 1 + e on the gradients of some samples that is found in every layer."""
    hardest = 0.0
    for layer in [
        name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))
    ]:
        found = None
        for e in (10 ** (-step / 2) for step in range(25)):
            if not ours.fault_is_found(copy.deepcopy(model), x, layer, samples, e):
                break
            found = e
        if found is None:
            return None
        hardest = max(hardest, found)
    return hardest


def main() -> None:
    parser = script.parser("certificate", __doc__, quick="of tiny networks", repeats=15)
    args: argparse.Namespace = script.parse(parser)
    costs = []
    for n in (8,) if args.quick else (64, 256, 1000):
        model, (x, y) = workload.mlp(), workload.images(n)
        costs.append(cost("perceptron of depth 10 and width 256", n, partial(certified, model, x, y), args.repeats))
    if not args.quick:
        network, x, y = workload.image_network("resnet18", 16)
        costs.append(cost("ResNet18", 16, partial(certified, network, x, y), max(1, args.repeats // 3)))
    tables.show("Cost of a certificate", COSTS, costs)
    faults = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that overflow in 16 bits
        for name, (network, x) in networks(args.quick).items():
            for kind, samples in (("all samples", slice(None)), ("one sample", slice(3, 4))):
                least = [smallest_fault(copy.deepcopy(network).to(dtype), x.to(dtype), samples) for dtype in DTYPES]
                faults.append([name, len(x), kind, *(None if e is None else float(f"{e:.1e}") for e in least)])
    tables.show("The smallest fault that is found", FAULTS, faults)
    text = TEXT.format(rounds=args.repeats)
    script.save(
        args,
        **tables.record("Cost of a certificate", text, COSTS, costs),
        faults=tables.record("The smallest fault that is found", text, FAULTS, faults),
    )


def certified(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, certify: int) -> torch.Tensor:
    return ours.layerwise_certified(certify, model, x, y)


if __name__ == "__main__":
    main()
