"""Claim tested: on a GPU, a layer's alignment from its factors runs at the rate of the tensor cores, without K.

At n = 6000 and o = 10, widths 256 and 1024: the fused centered moments at each precision, as useful flops (half of
the square, multiply and add) over the product rate measured in this run that bounds them: bf16 for "medium", a third
of it for "high", fp32 without tensor cores for "highest". Beside it plain torch at the same precision (panels of rows
right of the diagonal, best block size; all of K in memory), the materialised kernel of both, ten runs bit for bit, and
one layer of n = 60,000, whose K would take 1.3 TiB.
"""

import json
from collections.abc import Callable
from functools import partial

import torch
from common import device as on_device

import ahkernels as ah
from ahkernels.factors import Factors

OUTPUTS = 10
# Precision -> the ceiling that bounds it, and how many of its products an fp32 product takes.
CEILING = {"medium": ("bf16", 1), "high": ("bf16", 3), "highest": ("fp32", 1)}


def factors(n: int, width: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """a [n, 1, width], g [n, 1, o, width] as of a ReLU network on clustered inputs, and class indices."""
    generator = torch.Generator(device).manual_seed(0)
    y = torch.randint(OUTPUTS, (n,), generator=generator, device=device)
    centers = torch.randn(OUTPUTS, width, generator=generator, device=device)
    a = (centers[y] + torch.randn(n, width, generator=generator, device=device)).relu_()
    weight = torch.randn(OUTPUTS, width, generator=generator, device=device)
    mask = centers[y] + torch.randn(n, width, generator=generator, device=device) > 0
    return a[:, None], (weight * mask[:, None])[:, None], y


def bar(a: torch.Tensor, g: torch.Tensor, means: torch.Tensor, precision: str, block: int) -> torch.Tensor:
    """||C K C||_F^2 in plain torch by panels of `block` samples right of the diagonal; nothing waits for the device."""
    if precision == "medium":
        a, g = a.bfloat16(), g.bfloat16()
    n, _, o, width = g.shape
    a, g = a[:, 0], g.reshape(n * o, width)
    columns = means.float()
    rows = (means - means.mean()).float()
    total = means.new_zeros(())
    for begin in range(0, n, block):
        end = min(begin + block, n)
        p = (a[begin:end] @ a[begin:].T).float()
        q = (g[begin * o : end * o] @ g[begin * o :].T).float().view(end - begin, o, n - begin, o)
        q.mul_(p[:, None, :, None]).sub_(rows[begin:end, :, None, None]).sub_(columns[begin:])
        squares = torch.linalg.vector_norm(q.flatten(2), dim=2).double().square().sum()
        first = torch.linalg.vector_norm(q[:, :, : end - begin].flatten(2), dim=2).double().square().sum()
        total += 2 * squares - first
    return total


def plain_gram(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """K in plain torch, in place."""
    n, _, o, width = g.shape
    g = g.reshape(n * o, width)
    return (g @ g.T).view(n, o, n, o).mul_((a[:, 0] @ a[:, 0].T)[:, None, :, None]).view(n * o, n * o)


def with_matmul_precision(precision: str, job: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if precision == "high" else "highest")
        try:
            return job()
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def useful_flops(n: int, width: int) -> float:
    return float(n * OUTPUTS) ** 2 * width


def one_size(n: int, width: int, best: dict[str, float], device: str, repeats: int) -> dict[str, object]:
    a, g, y = factors(n, width, device)
    kernel = {p: ah.TangentKernel(Factors(a, g, bias=False), precision=p) for p in CEILING}
    means = kernel["highest"].row_means()
    exact = float(ah.ops.centered_moments([a.double()], [g.double()], [0.0], [means], "highest"))
    blocks = [b for b in (32, 128, 512) if b <= n]
    rows = []
    for precision, (bound, products) in CEILING.items():
        fused = partial(ah.ops.centered_moments, [a], [g], [0.0], [means], precision)
        jobs = {"fused moments": fused, "whole alignment": partial(ah.cka, kernel[precision], y)}
        for block in blocks:
            jobs[f"plain torch, blocks of {block}"] = with_matmul_precision(
                precision, partial(bar, a, g, means, precision, block)
            )
        timings = on_device.times(jobs, device, repeats)
        values = {name: float(job()) for name, job in jobs.items() if name != "whole alignment"}
        ours = timings["fused moments"]["median_s"]
        plain = min(value["median_s"] for name, value in timings.items() if name.startswith("plain"))
        rate = useful_flops(n, width) / ours
        rows.append(
            {
                "precision": precision,
                "timings": timings,
                "relative_error": {name: abs(value / exact - 1) for name, value in values.items()},
                "useful_flops_per_s": rate,
                "ceiling": f"{bound} / {products}",
                "fraction_of_ceiling": rate / (best[bound] / products),
                "floor_s": useful_flops(n, width) / (best[bound] / products),
                "plain_over_ours": plain / ours,
                "same_bits_in_10_runs": len({float(fused()) for _ in range(10)}) == 1,
            }
        )
        print(
            f"n = {n}, N = {width}, {precision}: {1e3 * ours:.2f} ms, {rate / 1e12:.1f} Tflop/s,",
            f"{100 * rows[-1]['fraction_of_ceiling']:.0f}% of {bound} / {products},",
            f"plain torch {plain / ours:.1f} times, error {rows[-1]['relative_error']['fused moments']:.1e}",
            flush=True,
        )
    gram = {
        "ours": partial(ah.ops.tangent_gram, [a], [g], [0.0], "highest"),
        "plain torch": with_matmul_precision("highest", partial(plain_gram, a, g)),
    }
    timings = on_device.times(gram, device, min(repeats, 3))
    peaks = {name: on_device.peak_bytes(job, device) for name, job in gram.items()}
    for name, timing in timings.items():
        print(f"  K in memory, {name}: {1e3 * timing['median_s']:.2f} ms, peak {peaks[name]} bytes", flush=True)
    return {"n": n, "width": width, "moments": rows, "gram": {"timings": timings, "peak_bytes": peaks}}


def full_data(n: int, width: int, best: dict[str, float], device: str) -> dict[str, object]:
    """One layer of all of Fashion-MNIST's size at each precision."""
    a, g, y = factors(n, width, device)
    rows, alignments = [], {}
    for precision, (bound, products) in CEILING.items():
        kernel = ah.TangentKernel(Factors(a, g, bias=False), precision=precision)
        job = partial(ah.cka, kernel, y)
        timing = on_device.times({"alignment": job}, device, repeats=3)["alignment"]
        alignments[precision] = job()
        rows.append(
            {
                "precision": precision,
                "timing": timing,
                "peak_bytes": on_device.peak_bytes(job, device),
                "floor_s": useful_flops(n, width) / (best[bound] / products),
                "alignment": alignments[precision],
            }
        )
    for row in rows:
        row["relative_difference"] = abs(row["alignment"] / alignments["highest"] - 1)
        print(
            f"n = {n}, N = {width}, {row['precision']}:",
            f"{row['timing']['median_s']:.3f} s (floor {row['floor_s']:.3f}),",
            f"peak {row['peak_bytes']} bytes, differs by {row['relative_difference']:.1e}",
            flush=True,
        )
    return {"n": n, "width": width, "rows": rows}


def main() -> None:
    args = on_device.arguments(__doc__, "cuda_layer", 7)
    n, large, widths, size = (64, 100, [16], 256) if args.quick else (6000, 60_000, [256, 1024], 8192)
    best = on_device.ceilings(args.device, size)
    print({name: f"{rate / 1e12:.2f}e12" for name, rate in best.items()}, flush=True)
    record = {
        "benchmark": "cuda_layer",
        "quick": args.quick,
        "machine": on_device.describe(args.device),
        "ceilings": best,
        "sizes": [one_size(n, width, best, args.device, args.repeats) for width in widths],
        "full_data": full_data(large, widths[0], best, args.device),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
