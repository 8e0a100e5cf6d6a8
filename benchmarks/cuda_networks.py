"""Claim tested: on a GPU, all layers of a network are measured end to end, at widths where nobody could before.

Depth 10, 784 inputs, 10 outputs. At width 256 against chunked plain torch and, at the largest number of samples that
fits both, per-layer Jacobians by torch.func; at widths 10,000 and 75,000 (bf16 weights, frozen) time and peak memory
alone.
"""

import itertools
import json
from functools import partial

import torch
from common import device as on_device
from common import jacobians, plain, plain_network, workload

import ahkernels as ah


def wide_network(width: int, device: str, dtype: torch.dtype, depth: int = 10) -> torch.nn.Sequential:
    """Frozen, He-initialised on the device, one layer at a time."""
    sizes = [784, *[width] * (depth - 1), 10]
    layers: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        linear = torch.nn.Linear(fan_in, fan_out, bias=False, device=device, dtype=dtype)
        torch.nn.init.normal_(linear.weight, std=(2 / fan_in) ** 0.5)
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1]).requires_grad_(False)


def against_others(n: int, with_jacobians: bool, device: str, repeats: int) -> dict[str, object]:
    model = workload.mlp().to(device)
    x, y = (tensor.to(device) for tensor in workload.images(n))
    target = torch.nn.functional.one_hot(y, 10).float()
    jobs = {"ours": lambda: ah.layerwise_alignment(model, x, y, precision="highest").cka}
    blocks = plain.block_sizes(n)
    for name, capture in (("by hand", plain_network.by_hand), ("autograd", plain_network.by_autograd)):
        for block in blocks:
            moments = partial(plain.blocked, block=block)
            jobs[f"plain torch, {name}, blocks of {block}"] = partial(
                plain_network.layerwise, capture, moments, model, x, target
            )
    if with_jacobians:
        jobs["torch.func Jacobians"] = partial(jacobians.layer_by_layer, model, x, target)
    values = {name: job().double().cpu() for name, job in jobs.items()}
    timings = on_device.times(jobs, device, repeats)
    peaks = {name: on_device.peak_bytes(job, device) for name, job in jobs.items()}
    ours = timings["ours"]["median_s"]
    for name, timing in timings.items():
        difference = float((values[name] / values["ours"] - 1).abs().max())
        print(
            f"n = {n}: {name}: {1e3 * timing['median_s']:.2f} ms, {timing['median_s'] / ours:.2f} times ours, "
            f"peak {peaks[name]}, differs by {difference:.1e}",
            flush=True,
        )
    return {"n": n, "timings": timings, "peak_bytes": peaks}


def wide(width: int, n: int, device: str) -> dict[str, object]:
    dtype = torch.bfloat16
    model = wide_network(width, device, dtype)
    x, y = workload.images(n)
    x, y = x.to(device, dtype), y.to(device)
    job = partial(ah.layerwise_alignment, model, x, y, memory_budget=24 << 30)
    report = job()
    timing = on_device.times({"alignment": job}, device, repeats=1)["alignment"]
    peak = on_device.peak_bytes(job, device)
    print(
        f"width {width}, n = {n}: {timing['median_s']:.2f} s, peak {peak} bytes above the model\n{report}", flush=True
    )
    return {
        "width": width,
        "n": n,
        "dtype": str(dtype),
        "timing": timing,
        "peak_bytes": peak,
        "report": report.to_dict(),
    }


def main() -> None:
    args = on_device.arguments(__doc__, "cuda_networks", 5)
    torch.manual_seed(0)
    record: dict[str, object] = {
        "benchmark": "cuda_networks",
        "quick": args.quick,
        "machine": on_device.describe(args.device),
        "against_others": [],
        "wide": [],
    }
    sizes = [(16, True)] if args.quick else [(64, True), (512, True), (4000, False)]
    for n, with_jacobians in sizes:
        record["against_others"].append(against_others(n, with_jacobians, args.device, args.repeats))
    for width in [32] if args.quick else [10_000, 75_000]:
        record["wide"].append(wide(width, 16 if args.quick else 1000, args.device))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
