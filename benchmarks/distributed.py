"""Claim tested: processes that have some of the samples each share the work of an alignment, and send what is counted.

An MLP with random images, its alignment per output and in global centering, exactly. One process with one thread is
timed without a group, and then so are groups of 1, 2, ... of them, one thread and one core each, with gloo. Every rank
tells its peak of memory and what it sent, beside the bytes that the shapes foretell.

From two sizes on one process the time is split into a part that grows as n and one that grows as n^2. With links of
stated speeds that gives times for more ranks than this machine has cores. They are projections: each rank is taken to
be as fast as a core of this machine, links to carry their speed without latency, and transfers to go on under tiles.

With --budgets the ranks measure within memory budgets instead, and their peaks are held against them. With --trace one
call of each rank is recorded, and the picture shows when factors are on their way and when tiles are computed.

Under torchrun, `torchrun --nproc-per-node 8 -m benchmarks.distributed --output FILE`, the ranks are those of torchrun:
on GPUs with NCCL, where there are any. Rank 0 writes the file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import ahkernels as ah
from ahkernels.distributed import Group
from ahkernels.distributed.samples import meetings
from benchmarks.common import figure, memory, script, workload
from benchmarks.common.arguments import positive
from benchmarks.common.ranks import run_ranks

OUTPUTS = 10
LINKS = {"10 Gbit/s Ethernet": 1.25e9, "100 Gbit/s InfiniBand": 12.5e9, "NVLink, 450 GB/s": 450e9}
PROJECTED = (1, 2, 4, 8, 16, 64)
MIB = 1 << 20
ALLOWANCE = 100  # MiB beyond a budget, for workspaces of the ops, of torch and of sums over the ranks
TILES, TRANSFER = "ahkernels::pair_inner_products", "all_to_all"  # what the profiler calls them


def shares(n: int, ranks: int) -> list[int]:
    """Samples of each rank, as equal as can be."""
    return [n // ranks + (rank < n % ranks) for rank in range(ranks)]


def foretold(n: int, ranks: int, shapes: Sequence[tuple[int, int]], item: int) -> list[int]:
    """Bytes of factors and means that each rank sends to others while pairs of samples meet, from the shapes alone.

    A layer [d, m] without a bias has (d + o m) numbers for each sample, and o^2 means in float64.
    """
    of_sample = sum((d + OUTPUTS * m) * item + 8 * OUTPUTS**2 for d, m in shapes)
    counts = shares(n, ranks)
    return [of_sample * sum(one.send.stop - one.send.start for one in meetings(rank, counts)) for rank in range(ranks)]


def counted(group: Any) -> tuple[dict[str, int], dict[str, float]]:
    """Bytes and seconds so far; nothing without a group."""
    return ({}, {}) if group is None else (dict(Group.of(group).traffic), dict(Group.of(group).waited))


def measure(n: int, args: argparse.Namespace, group: Any, device: torch.device) -> dict[str, Any]:
    """One measurement of n samples, of which this rank has some: seconds, peak and traffic of this rank."""
    model = workload.mlp(args.depth, args.width, outputs=OUTPUTS).to(device)
    x, y = workload.images(n, outputs=OUTPUTS)
    if group is not None:
        counts = shares(n, dist.get_world_size())
        begin = sum(counts[: dist.get_rank()])
        x, y = x[begin : begin + counts[dist.get_rank()]], y[begin : begin + counts[dist.get_rank()]]
    x, y = x.to(device), y.to(device)
    options = {"centering": ("global", "per_output"), "precision": "highest", "process_group": group, "certify": 0}
    if args.budget:
        options["memory_budget"] = args.budget * MIB
    ah.layerwise_alignment(model, x[:64], y[:64], **options)  # threads, libraries and connections start here
    seconds, found = [], {}
    held = memory.reset_high_water_mark()
    before, waited_before = counted(group)
    for _ in range(args.repeats):
        if group is not None:
            dist.barrier()
        start = time.perf_counter()
        found = ah.layerwise_alignment(model, x, y, **options)
        seconds.append(time.perf_counter() - start)
    after, waited = counted(group)
    explained = {name: options[name] for name in ("centering", "process_group", "memory_budget") if name in options}
    return {
        "seconds": seconds,
        "peak": memory.high_water_mark() - held,
        "traffic": {kind: (after[kind] - before[kind]) // args.repeats for kind in after},
        "waited": {kind: (waited[kind] - waited_before[kind]) / args.repeats for kind in waited},
        "cka": {centering: report.cka.tolist() for centering, report in found.items()},
        "shapes": [list(reversed(weight.shape)) for weight in model.parameters()],
        "item": next(model.parameters()).itemsize,
        "expected_peak": ah.explain(model, x, **explained).peak_bytes if group is not None else None,
        "seconds_of_sum": None if group is None else seconds_of_sum(group, device),
        "intervals": intervals(lambda: ah.layerwise_alignment(model, x, y, **options)) if args.trace else None,
    }


def seconds_of_sum(group: Any, device: torch.device, repeats: int = 200) -> float:
    """The median time of a sum of one number over the ranks, with nothing else to do."""
    ranks, number, found = Group.of(group), torch.zeros(1, device=device), []
    for _ in range(repeats):
        start = time.perf_counter()
        float(ranks.sum(number))
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def intervals(call: Callable[[], object]) -> dict[str, list[tuple[float, float]]]:
    """When transfers of factors are under way and when tiles are computed: begin and end in seconds, from one call.

    The backend ends the record of a transfer once it has arrived.
    """
    dist.barrier()
    with torch.profiler.profile() as profiler:
        call()
    found: dict[str, list[tuple[float, float]]] = {"transfers": [], "tiles": []}
    for event in profiler.events():
        kind = "tiles" if event.name == TILES else "transfers" if TRANSFER in event.name else None
        if kind is not None:
            found[kind].append((event.time_range.start / 1e6, event.time_range.end / 1e6))
    return found


def as_rank(args: argparse.Namespace) -> None:
    """One rank of those that torchrun has started; rank 0 writes what all have found."""
    rank = int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(rank)
    else:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank % len(os.sched_getaffinity(0))]})
        torch.set_num_threads(1)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    group = None if args.alone else dist.group.WORLD
    own = {
        str(n): measure(n, args, group, device) for n in (args.samples, *((args.samples // 2,) if args.alone else ()))
    }
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    if dist.get_rank() == 0 and args.raw:
        args.raw.write_text(json.dumps(found))
    elif dist.get_rank() == 0:
        script.save(args, sizes=sizes_of(args), groups=[report_ranks(args, found)])
    dist.destroy_process_group()


def started(args: argparse.Namespace, ranks: int, *, alone: bool) -> list[dict[str, Any]]:
    """What so many ranks have found, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        options = ["--raw", str(raw), "--samples", str(args.samples), "--width", str(args.width)]
        options += ["--depth", str(args.depth), "--repeats", str(args.repeats)]
        options += ["--alone"] * alone + ["--trace"] * args.trace
        options += ["--budget", str(args.budget)] if args.budget else []
        run_ranks("benchmarks.distributed", ranks, *options)
        found: list[dict[str, Any]] = json.loads(raw.read_text())
    return found


def report_ranks(
    args: argparse.Namespace, found: Sequence[dict[str, Any]], alone: float | None = None
) -> dict[str, Any]:
    """A table of the ranks of one group, printed."""
    of_ranks = [one[str(args.samples)] for one in found]
    seconds = statistics.median(max(rounds) for rounds in zip(*(one["seconds"] for one in of_ranks), strict=True))
    expected = foretold(args.samples, len(of_ranks), of_ranks[0]["shapes"], of_ranks[0]["item"])
    faster = f", {alone / seconds:.2f} times as fast as one process without a group" if alone else ""
    print(f"\n{len(of_ranks)} ranks, n = {args.samples:,}: {seconds:.2f} s{faster}")
    print(f"  a sum of one number: {1e6 * of_ranks[0]['seconds_of_sum']:.0f} us")
    for rank, (one, bytes_sent) in enumerate(zip(of_ranks, expected, strict=True)):
        traffic = ", ".join(f"{kind} {number / 2**20:.1f} MiB" for kind, number in one["traffic"].items())
        waited = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in one["waited"].items())
        print(f"  rank {rank}: peak {one['peak'] / 2**20:.0f} MiB; {traffic}; foretold {bytes_sent / 2**20:.1f} MiB")
        print(f"    waited: {waited}")
    return {"ranks": len(of_ranks), "seconds": seconds, "of_ranks": of_ranks, "foretold": expected}


def projected(linear: float, square: float, args: argparse.Namespace, shapes: Sequence[tuple[int, int]]) -> list[dict]:
    """Seconds for more ranks: linear and square parts over the ranks, and what the links take beyond the tiles."""
    rows = []
    print("\nprojected seconds, each rank as fast as this core")
    for ranks in PROJECTED:
        sent = max(foretold(args.samples, ranks, shapes, 4))
        reduced = 2 * (ranks - 1) / ranks * sum(8 * d * m * (OUTPUTS + 5) for d, m in shapes)
        tiles = square / ranks
        row = {"ranks": ranks, "sent": sent, "reduced": reduced}
        for link, speed in LINKS.items():
            row[link] = linear / ranks + max(tiles, sent / speed) + reduced / speed
        rows.append(row)
        print(f"  {ranks} ranks: " + ", ".join(f"{row[link]:.2f} with {link}" for link in LINKS))
    return rows


def within_budgets(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The peak of each rank within each memory budget, beyond the model and the inputs."""
    found = []
    for budget, ranks in itertools.product(args.budgets, args.ranks):
        args.budget = budget
        of_ranks = [one[str(args.samples)] for one in started(args, ranks, alone=False)]
        peaks, seconds = [one["peak"] for one in of_ranks], [max(one["seconds"]) for one in of_ranks]
        expected = of_ranks[0]["expected_peak"]
        row = {"ranks": ranks, "budget": budget * MIB, "peaks": peaks, "expected_peak": expected}
        row |= {"within": max(peaks) <= (budget + ALLOWANCE) * MIB, "seconds": max(seconds)}
        row["seconds_of_sum"] = of_ranks[0]["seconds_of_sum"]
        shown = ", ".join(f"{peak / MIB:.0f}" for peak in peaks)
        print(f"{ranks} ranks, budget {budget} MiB: peaks {shown} MiB, {expected / MIB:.0f} MiB expected")
        found.append(row)
    return found


def overlaps(args: argparse.Namespace) -> dict[str, Any]:
    """When transfers are under way and tiles are computed on each rank of the largest group, and how long both are."""
    of_ranks = [one[str(args.samples)]["intervals"] for one in started(args, args.ranks[-1], alone=False)]
    rows = []
    for rank, one in enumerate(of_ranks):
        transfers, tiles = merged(one["transfers"]), merged(one["tiles"])
        both = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in transfers for b in tiles)
        rows.append({"transfers": length(transfers), "tiles": length(tiles), "both": both})
        print(f"  rank {rank}: " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in rows[-1].items()))
    if args.output is not None:
        draw(args.output.with_suffix(".png"), of_ranks)
    return {"intervals": of_ranks, "seconds": rows}


def merged(found: Sequence[Sequence[float]]) -> list[list[float]]:
    """Intervals that do not overlap, in order."""
    joined: list[list[float]] = []
    for begin, end in sorted(map(tuple, found)):
        if joined and begin <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    return joined


def length(found: Sequence[Sequence[float]]) -> float:
    """The seconds of intervals that do not overlap."""
    return sum(end - begin for begin, end in found)


def draw(path: Path, of_ranks: Sequence[dict[str, Any]]) -> None:
    """Two lines for each rank, over the whole call and over the first layer with transfers."""
    end = max(end for one in of_ranks for _, end in one["tiles"])
    first = min(begin for one in of_ranks for begin, _ in one["transfers"])
    with figure.saved(path, (9.0, 1.4 + 0.7 * len(of_ranks))) as drawn:
        axes = drawn.subplots(1, 2, sharey=True)
        for ax, (left, right) in zip(axes, ((0.0, end), (first - 0.01 * end, first + 0.12 * end)), strict=True):
            for rank, one in enumerate(of_ranks):
                for place, (kind, color) in enumerate({"tiles": "#0072b2", "transfers": "#e69f00"}.items()):
                    bars = [(begin, last - begin) for begin, last in merged(one[kind])]
                    ax.broken_barh(bars, (2.5 * rank + place, 0.9), color=color, label=kind if rank == 0 else None)
            ax.set_xlim(left, right)
            ax.set_xlabel("seconds")
        axes[0].set_yticks([2.5 * rank + 0.95 for rank, _ in enumerate(of_ranks)])
        axes[0].set_yticklabels([f"rank {rank}" for rank, _ in enumerate(of_ranks)])
        axes[0].invert_yaxis()
        axes[0].set_title("one call")
        axes[1].set_title("the beginning of its first layer")
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)


def sizes_of(args: argparse.Namespace) -> dict[str, int]:
    return {"samples": args.samples, "width": args.width, "depth": args.depth, "outputs": OUTPUTS}


def main() -> None:
    parser = script.parser("distributed", __doc__, quick="on few samples", repeats=5)
    parser.add_argument("--samples", type=positive(int), default=4000, help="n, of all ranks together")
    parser.add_argument("--width", type=positive(int), default=256, help="units in a hidden layer")
    parser.add_argument("--depth", type=positive(int), default=4, help="layers")
    parser.add_argument("--ranks", type=positive(int), nargs="+", default=[1, 2], help="sizes of groups")
    parser.add_argument("--budgets", type=positive(int), nargs="+", help="memory budgets in MiB: measure peaks instead")
    parser.add_argument("--trace", action="store_true", help="record one call of the largest group instead")
    parser.add_argument("--budget", type=positive(int), help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--raw", type=Path, help=argparse.SUPPRESS)
    if "LOCAL_RANK" in os.environ:
        args = parser.parse_args()
        as_rank(args)
        return
    args = script.parse(parser)
    if args.quick:
        args.samples, args.width, args.depth, args.repeats = 200, 32, 2, 1
    if args.trace or args.budgets:
        if args.output == script.RESULTS / "distributed.json":
            args.output = args.output.with_stem("distributed-trace" if args.trace else "distributed-budgets")
        measured = {"trace": overlaps(args)} if args.trace else {"budgets": within_budgets(args)}
        script.save(args, sizes=sizes_of(args), **measured)
        return
    (found,) = started(args, 1, alone=True)
    whole, half = (statistics.median(found[str(n)]["seconds"]) for n in (args.samples, args.samples // 2))
    print(f"\none process without a group: n = {args.samples:,} {whole:.2f} s, n = {args.samples // 2:,} {half:.2f} s")
    square = max(0.0, 2 * (whole - 2 * half))
    groups = [report_ranks(args, started(args, ranks, alone=False), whole) for ranks in args.ranks]
    for group in groups:
        for centering, alone in found[str(args.samples)]["cka"].items():
            got = group["of_ranks"][0]["cka"][centering]
            if max(abs(a - b) for a, b in zip(got, alone, strict=True)) > 1e-5:
                raise AssertionError(f"{group['ranks']} ranks differ from one process: {got} and {alone}")
    # What one rank of a group takes beyond the tiles, which comes with a product more than one process alone needs.
    rows = projected(groups[0]["seconds"] - square, square, args, groups[0]["of_ranks"][0]["shapes"])
    script.save(args, sizes=sizes_of(args), alone=found, groups=groups, projected=rows, links=LINKS)


if __name__ == "__main__":
    main()
