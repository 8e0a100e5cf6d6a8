"""Claim tested: a full call of layerwise_alignment spends its time in the passes and the products that it cannot avoid.

Where the time goes, stage by stage, each beside its own floor, for the depth-10, width-256 MLP at n = 64, 256 and 1000
and ResNet18 at n = 16, o = 10. Functions of the package are wrapped in timers from outside. What happens inside of the
one op of a layer is told apart by ops that leave parts of it out, called on the same factors: its time in the call is
split in proportion.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import torch

import ahkernels as ah
from ahkernels import layerwise, ops
from ahkernels.capture import run
from benchmarks.common import floor, script, tables, timing, workload
from benchmarks.common.ceilings import PANELS, Ceilings, Work
from benchmarks.common.figure import saved
from benchmarks.common.op_problems import OpProblem

OUTPUTS = 10
Case = tuple[str, torch.nn.Module, torch.Tensor, torch.Tensor]
PLAN, FORWARD, BACKWARD, FACTORS, OPS = "plan", "forward pass", "backward pass", "factors", "ops"
# Module, name of a function that the call makes, and the stage that it is.
TIMED = [
    (layerwise, "plan_capture", PLAN),
    (run, "call_model", FORWARD),
    (run, "gradients_of", BACKWARD),
    (run, "factors_of", FACTORS),
    (ops, "tangent_moments", OPS),
]
SQUARE, FORWARD_GRAM, SUMS, REST = "backward Gram and fused pass", "forward Gram", "thin products and sums", "the rest"
STAGES = {  # in the order of the figure, with their colours (Okabe-Ito)
    PLAN: "#999999",
    FORWARD: "#56B4E9",
    BACKWARD: "#0072B2",
    FACTORS: "#CC79A7",
    FORWARD_GRAM: "#F0E442",
    SQUARE: "#E69F00",
    SUMS: "#009E73",
    REST: "#000000",
}
COLUMNS = [
    "network",
    "n",
    "stage",
    "time, ms",
    "share, %",
    "floor by flops, ms",
    "floor by bytes, ms",
    "floor, % of time",
]
TEXT = (
    "Medians of {repeats} calls. Plan: arguments, and five samples through the network. Backward pass: all 10 "
    "cotangents batched. Factors: what a layer's rule makes of its input and gradients, with Jacobians where they "
    "are kept. Backward Gram and fused pass: packing, products, forward Gram multiplied in, centering, squares; "
    "packing cannot be told apart from outside. The rest: Python, copies between chunks. Floors: flops over the "
    "best fp32 GEMM rate measured in the run, {rate:.0f} Gflop/s; bytes over the copy bandwidth, {bandwidth:.1f} "
    "GB/s."
)


def cases(quick: bool) -> Iterator[Case]:
    """Name, network, x, y."""
    for n in (16,) if quick else (64, 256, 1000):
        yield "MLP", workload.mlp(), *workload.images(n)
    yield "ResNet18", *workload.image_network("resnet18", 2 if quick else 16)


@contextmanager
def stage_timers() -> Iterator[Counter[str]]:
    """Seconds inside of each timed function while this is open."""
    seconds: Counter[str] = Counter()

    def timed(function: Callable, stage: str, *args: object, **kwargs: object) -> object:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[stage] += time.perf_counter() - start

    with ExitStack() as patches:
        for module, name, stage in TIMED:
            patches.enter_context(mock.patch.object(module, name, partial(timed, getattr(module, name), stage)))
        yield seconds


def calls(case: Case, repeats: int) -> list[dict[str, float]]:
    """Seconds of each stage in each of so many calls, which add up to the call."""
    _, model, x, y = case
    found = []
    for _ in range(repeats + 1):
        with stage_timers() as seconds:
            start = time.perf_counter()
            ah.layerwise_alignment(model, x, y, precision="highest")
            total = time.perf_counter() - start
        found.append({**seconds, REST: total - sum(seconds.values())})
    return found[1:]  # the first warms up


def split_of_ops(kernels: Sequence[ah.TangentKernel], y: torch.Tensor, repeats: int) -> dict[str, float]:
    """Shares of the op's time: of its products with the backward factor, of the forward Gram and of the sums."""
    v = torch.nn.functional.one_hot(y, OUTPUTS).double()
    v = (v - v.mean()).unsqueeze(2)
    forms = {"all": [], "norm": [], "norm without forward factors": []}
    for kernel in kernels:
        batch, means = kernel.batch, [kernel.row_means()]
        forms["all"].append(partial(ops.tangent_moments, batch, v, "highest"))
        forms["norm"].append(partial(ops.centered_inner_products, batch, means, "highest"))
        if not batch.by_jacobian[0]:  # there the forward factor makes the Jacobian, which is the product itself
            batch = batch._replace(forward=[batch.forward[0][..., :0]], bias=[1.0])
        forms["norm without forward factors"].append(partial(ops.centered_inner_products, batch, means, "highest"))
    jobs = {name: lambda form=form: [op() for op in form] for name, form in forms.items()}
    seconds = {name: one.median for name, one in timing.interleaved(jobs, repeats).items()}
    square = min(seconds["norm without forward factors"], seconds["norm"])
    whole = max(seconds["all"], seconds["norm"])
    parts = {SQUARE: square, FORWARD_GRAM: seconds["norm"] - square, SUMS: whole - seconds["norm"]}
    return {stage: part / whole for stage, part in parts.items()}


def work(case: Case, kernels: Sequence[ah.TangentKernel]) -> dict[str, Work]:
    """The least that each stage has to do."""
    _, model, x, _ = case
    n = len(x)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    forward, backward = floor.module_passes(model, x)
    held = {True: 0.0, False: 0.0}  # bytes of backward and of forward factors
    held_by_sums, flops = 0.0, Counter[str]()
    for layer, kernel in zip(ah.explain(model, x), kernels, strict=True):
        (factors,) = kernel.factors
        d, (_, s, o, m) = factors.forward.shape[2], factors.backward.shape
        held[True] += 4 * factors.backward.numel()
        held[False] += 4 * n * s * d
        one = OpProblem(n, o, d, m, s, factors.by_jacobian)
        if layer.route == "jacobian":
            flops[FACTORS] += layer.flops - (n * o) ** 2 * m
        flops[FORWARD_GRAM] += 0 if factors.by_jacobian else (n * s) ** 2 * d
        flops[SQUARE] += one.square_flops() - (0 if factors.by_jacobian else (n * s) ** 2 * d)
        # Row sums, <y, K y> and the trace by products, or from all entries of K, on and below the diagonal.
        products = one.product_flops(passes=2) + one.product_flops(passes=1) + one.diagonal_flops()
        entries = (n * o) ** 2 / 2
        flops[SUMS] += min(products, 4 * entries)
        held_by_sums += min(4 * (factors.forward.numel() + factors.backward.numel()), 4 * entries)
    return {
        FORWARD: Work(n * forward, weights + held[False]),
        BACKWARD: Work(n * backward * OUTPUTS, weights + held[True]),
        FACTORS: Work(flops[FACTORS], 0),
        FORWARD_GRAM: Work(flops[FORWARD_GRAM], held[False]),
        SQUARE: Work(flops[SQUARE], held[True]),
        SUMS: Work(flops[SUMS], held_by_sums),
    }


def measure(case: Case, best: Ceilings, repeats: int) -> tuple[list[list[tables.Cell]], dict[str, object]]:
    """Rows of COLUMNS, and the raw seconds."""
    name, model, x, y = case
    kernels = list(ah.tangent_kernels(model, x, precision="highest").values())
    split = split_of_ops(kernels, y, repeats)
    rounds = calls(case, repeats)
    seconds = {stage: statistics.median(one.get(stage, 0.0) for one in rounds) for stage in (*STAGES, OPS)}
    seconds |= {stage: share * seconds[OPS] for stage, share in split.items()}
    del seconds[OPS]
    least, total = work(case, kernels), sum(seconds.values())
    rows: list[list[tables.Cell]] = []
    for stage in STAGES:
        floors = [1e3 * floor for floor in best.floor(least[stage])] if stage in least else [None, None]
        took = 1e3 * seconds[stage]
        of_floor = None if None in floors or not took else tables.rounded(100 * max(floors) / took, 2)
        cells = [None if cell is None else tables.rounded(cell) for cell in (took, 0.1 * took / total, *floors)]
        rows.append([name, len(x), stage, *cells, of_floor])
    call = statistics.median(sum(one.values()) for one in rounds)
    rows.append([name, len(x), "whole call", tables.rounded(1e3 * call), 100.0, None, None, None])
    return rows, {"network": name, "n": len(x), "calls_s": rounds, "split_of_ops": split}


def draw(rows: Sequence[Sequence[tables.Cell]], folder: Path) -> None:
    """One bar for each call, of the shares of its stages."""
    names = list(dict.fromkeys((row[0], row[1]) for row in rows))
    totals = {(row[0], row[1]): row[3] for row in rows if row[2] == "whole call"}
    with saved(folder / "breakdown.png", (9, 0.6 * len(names) + 1.8)) as figure:
        axes = figure.subplots()
        left = dict.fromkeys(names, 0.0)
        for stage, colour in STAGES.items():
            shares = {(row[0], row[1]): row[4] for row in rows if row[2] == stage}
            heights = [shares[name] for name in names]
            axes.barh(range(len(names)), heights, left=list(left.values()), color=colour, label=stage, height=0.65)
            for name in names:
                left[name] += shares[name]
        axes.set_yticks(range(len(names)), [f"{name}, n = {n}\n{totals[name, n]:,g} ms" for name, n in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of a call of layerwise_alignment, %")
        figure.legend(loc="outside upper center", ncols=4, frameon=False)


def main() -> None:
    parser = script.parser("breakdown", __doc__, quick="on a few samples", repeats=7, of_repeats="calls of each case")
    args = script.parse(parser)
    args.repeats = 2 if args.quick else args.repeats
    best = script.measure_ceilings(args, PANELS)
    found = [measure(case, best, args.repeats) for case in cases(args.quick)]
    rows = [row for part, _ in found for row in part]
    title = "Where the time of a full call goes"
    tables.show(title, COLUMNS, rows)
    if args.output is not None:
        text = TEXT.format(repeats=args.repeats, rate=best.rate() / 1e9, bandwidth=best.bandwidth / 1e9)
        made_of = {"figures": ["breakdown"], "calls": [one for _, one in found]}
        script.save(args, best, **tables.record(title, text, COLUMNS, rows), **made_of)
        draw(rows, args.output.parent)


if __name__ == "__main__":
    main()
