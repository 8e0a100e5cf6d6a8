"""Claim tested: on a GPU, all layers of a network are measured end to end, at widths where nobody could before.

Depth 10, 784 inputs, 10 outputs. At width 256 and n = 64, 512 and 4000 against chunked plain torch and, where they
fit, per-layer Jacobians by torch.func; at widths 2048 and 10,000 (bf16 weights, frozen, n = 1000) time and peak memory
alone.
"""

import itertools
from functools import partial

import torch

import ahkernels as ah
from benchmarks.common import device as on_device
from benchmarks.common import jacobians, plain_layer, plain_network, workload
from benchmarks.gpu import script
from benchmarks.gpu.row_file import RowFile


def wide_network(width: int, device: str, dtype: torch.dtype, depth: int = 10) -> torch.nn.Sequential:
    """Frozen, He-initialised on the device, one layer at a time."""
    sizes = [784, *[width] * (depth - 1), 10]
    layers: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        linear = torch.nn.Linear(fan_in, fan_out, bias=False, device=device, dtype=dtype)
        torch.nn.init.normal_(linear.weight, std=(2 / fan_in) ** 0.5)
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1]).requires_grad_(False)


def against_others(n: int, with_jacobians: bool, device: str, repeats: int, rows: RowFile) -> None:
    """All layers of the network of width 256 by each contender, a row for each."""
    model = workload.mlp().to(device)
    x, y = (tensor.to(device) for tensor in workload.images(n))
    target = torch.nn.functional.one_hot(y, 10).float()
    jobs = {"ours": lambda: ah.layerwise_alignment(model, x, y, precision="highest").cka}
    for name, capture in (("by hand", plain_network.by_hand), ("autograd", plain_network.by_autograd)):
        for block in plain_layer.block_sizes(n):
            moments = partial(plain_layer.blocked, block=block)
            jobs[f"plain torch, {name}, blocks of {block}"] = partial(
                plain_network.layerwise, capture, moments, model, x, target
            )
    if with_jacobians:
        jobs["torch.func Jacobians"] = partial(jacobians.layer_by_layer, model, x, target)
    ours: tuple[float, torch.Tensor] | None = None
    for contender, job in jobs.items():
        value, timing, peak = on_device.measured(job, device, repeats)
        values = value.double().cpu()
        ours = ours or (timing["median_s"], values)
        difference = float((values / ours[1] - 1).abs().max())
        rows.add(
            f"n = {n}, {contender}: {1e3 * timing['median_s']:.2f} ms, {timing['median_s'] / ours[0]:.2f} times ours, "
            f"peak {peak} bytes, differs by {difference:.1e}",
            kind="network",
            n=n,
            contender=contender,
            timing=timing,
            peak_bytes=peak,
            alignments=values.tolist(),
        )


def wide(width: int, n: int, device: str, rows: RowFile) -> None:
    """One measurement of all layers of a wide network."""
    dtype = torch.bfloat16
    model = wide_network(width, device, dtype)
    x, y = workload.images(n)
    x, y = x.to(device, dtype), y.to(device)
    report, timing, peak = on_device.measured(
        partial(ah.layerwise_alignment, model, x, y, memory_budget=24 << 30), device, 1
    )
    rows.add(
        f"width {width}, n = {n}: {timing['median_s']:.2f} s, peak {peak} bytes above the model\n{report}",
        kind="wide",
        width=width,
        n=n,
        dtype=str(dtype),
        timing=timing,
        peak_bytes=peak,
        report=report.to_dict(),
    )


def main() -> None:
    args = script.arguments("cuda_networks", __doc__, 5)
    torch.manual_seed(0)
    rows = script.row_file(args)
    for n, with_jacobians in [(4, True)] if args.quick else [(64, True), (512, True), (4000, False)]:
        against_others(n, with_jacobians, args.device, args.repeats, rows)
    for width in [32] if args.quick else [2048, 10_000]:
        wide(width, 16 if args.quick else 1000, args.device, rows)


if __name__ == "__main__":
    main()
