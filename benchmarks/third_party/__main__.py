"""Claim tested: networks of many libraries are measured as they are, with the numbers of autograd, and fast.

Tiny networks with random weights, as each library makes them. The package gets the network, what a user would call it
with, and where that is not the outputs alone, a function that takes them out of what the network returns. The table has
the sentence of those that are refused; of the others how many layers have no rule; the time of the alignment of all
layers beside that from the Jacobian of each layer by torch.func; and how far kernels and alignments are from those of
torch.autograd.grad in float64, by loops over samples and outputs, in the first, the middle and the last layer and one
of the rarest kind, for the network in float32 and in float64.

The libraries are listed in requirements.txt; those that are not installed are left out. `--resume` keeps the rows of
networks that the file of results has.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import jacobians, ours, script, tables, timing
from benchmarks.common.arguments import positive
from benchmarks.third_party import explicit, reference
from benchmarks.third_party.layers import a_few, parameters_by_layer, parameters_of
from benchmarks.third_party.networks import NETWORKS
from benchmarks.third_party.problem import OUTPUTS, SAMPLES, Network, Problem, labels

QUICK = "torch"  # the library whose networks a quick run has
TITLE = "Networks of other libraries"
TEXT = (
    "n = {n}, o = {o}. Times in ms: the median of our calls, and one pass over the layers by Jacobians, from as many "
    "layers as {limit:g} s allow. Differences are relative to float64 autograd: of kernels by their Frobenius norms, "
    "the largest over a few layers."
)
COLUMNS = ["library", "version", "network", "layers", "fallback", "of kinds", "ours", "Jacobians", "by", "ratio"]
COLUMNS += ["K", "A", "K, float64", "A, float64"]


@dataclass
class Row:
    """What is known of one network; None where it is not."""

    library: str
    version: str
    network: str
    refusal: str | None = None  # why the package does not measure it
    layers: int | None = None
    fallback: dict[str, int] = field(default_factory=dict)  # layers without a rule, by their kind
    reasons: dict[str, str] = field(default_factory=dict)  # by the name of such a layer, where they are stated
    ours_s: float | None = None
    jacobians_s: float | None = None
    jacobians_by: dict[str, int] = field(default_factory=dict)  # layers that were measured, by the way that worked
    no_vmap: str | None = None  # why torch.func does not take the samples at once
    checked: list[str] = field(default_factory=list)  # layers held against float64
    kernel_difference: float | None = None
    alignment_difference: float | None = None
    kernel_difference_float64: float | None = None
    alignment_difference_float64: float | None = None
    from_jacobians: float | None = None  # largest difference of an alignment from that by Jacobians in float32
    undefined: int = 0  # layers whose kernel is zero or constant

    def cells(self) -> list[tables.Cell]:
        """The row of the table."""
        head: list[tables.Cell] = [self.library, self.version, self.network]
        if self.refusal is not None or self.ours_s is None or self.jacobians_s is None:
            return [*head, None, None, self.refusal, *[None] * (len(COLUMNS) - 6)]
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.fallback.items())
        times = [tables.rounded(1e3 * seconds) for seconds in (self.ours_s, self.jacobians_s)]
        ratio = tables.rounded(self.jacobians_s / self.ours_s)
        differences = [
            None if value is None else f"{value:.0e}"
            for value in (
                *(self.kernel_difference, self.alignment_difference),
                *(self.kernel_difference_float64, self.alignment_difference_float64),
            )
        ]
        by = ", ".join(self.jacobians_by)
        return [*head, self.layers, sum(self.fallback.values()), kinds, *times, by, ratio, *differences]


def measure(network: Network, repeats: int, limit: float) -> Row:
    """The row of a network that is installed."""
    row = Row(network.library, network.version or "", network.name)
    try:
        problem = network.build()
        model, options = problem.model, problem.options
        found = ours.layerwise_by_name(model, problem.x, labels(), **options)
        explained = ours.explained(model, problem.x, **options)
    except Exception as reason:  # the sentence that a user would read
        row.refusal = explicit.sentence(reason)
        return row
    without_rule = [one for one in explained if one.route == "fallback"]
    row.layers, row.undefined = len(found), sum(map(math.isnan, found.values()))
    row.fallback = dict(Counter(one.kind for one in without_rule).most_common())
    row.reasons = {one.layer: str(one.reason) for one in without_rule if getattr(one, "reason", None)}
    times = timing.interleaved({"": lambda: ours.layerwise_by_name(model, problem.x, labels(), **options)}, repeats)
    row.ours_s = times[""].median
    compare_with_float64(row, problem, a_few({one.layer: one.kind for one in explained}, list(row.reasons)), found)
    compare_with_jacobians(row, network.build(), found, limit)
    return row


def compare_with_float64(row: Row, problem: Problem, layers: list[str], found: dict[str, float]) -> None:
    """Fills in how far kernels and alignments of these layers are from autograd's."""
    row.checked = layers
    expected = reference.kernels(problem, layers)
    target = functional.one_hot(labels(), OUTPUTS).double()
    alignments = [float(jacobians.kernel_alignment(kernel, target)) for kernel in expected]
    row.kernel_difference = kernel_difference(problem, layers, expected)
    row.alignment_difference = alignment_difference([found[name] for name in layers], alignments)
    exact = problem.in_float64()
    row.kernel_difference_float64 = kernel_difference(exact, layers, expected)
    again = ours.layerwise_by_name(exact.model, exact.x, labels(), layers=layers, **exact.options)
    row.alignment_difference_float64 = alignment_difference([again[name] for name in layers], alignments)


def kernel_difference(problem: Problem, layers: list[str], expected: Sequence[Tensor]) -> float:
    """The largest relative distance of a kernel from the expected one."""
    in_order = dict(zip(layers, expected, strict=True))
    names = [one.layer for one in ours.explained(problem.model, problem.x, layers=layers, **problem.options)]
    kernels = ours.dense_kernels(problem.model, problem.x, layers, **problem.options)
    return max(
        relative(float((kernel.double() - in_order[name]).norm()), float(in_order[name].norm()))
        for name, kernel in zip(names, kernels, strict=True)
    )


def alignment_difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference of an alignment; one that is not defined has none."""
    pairs = zip(found, expected, strict=True)
    return max((relative(abs(a - b), b) for a, b in pairs if not math.isnan(a)), default=0.0)


def relative(distance: float, size: float) -> float:
    """A distance beside a size, both of which may be 0."""
    return distance / size if size else (0.0 if distance == 0 else math.inf)


def compare_with_jacobians(row: Row, problem: Problem, found: dict[str, float], limit: float) -> None:
    """Fills in the time of all layers by Jacobians, and how far their alignments are."""
    owned = parameters_by_layer(problem.model)
    timed = explicit.alignments(problem, {name: parameters_of(owned, name) for name in found}, limit)
    row.jacobians_s, row.jacobians_by, row.no_vmap = timed.seconds, timed.ways, timed.refusal
    row.from_jacobians = max(
        (abs(found[name] - value) for name, value in timed.alignments.items() if not math.isnan(found[name])),
        default=0.0,
    )


def kept_rows(args: argparse.Namespace) -> dict[tuple[str, str, str], Row]:
    """Rows that the file of results has, by library, version and network; none without --resume."""
    if not args.resume or args.output is None or not args.output.exists():
        return {}
    rows = [Row(**row) for row in json.loads(args.output.read_text())["networks"]]
    return {(row.library, row.version, row.network): row for row in rows}


def save(rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Writes what there is."""
    text = TEXT.format(n=SAMPLES, o=OUTPUTS, limit=args.limit)
    table = tables.record(TITLE, text, COLUMNS, [row.cells() for row in rows])
    script.save(args, **table, networks=[asdict(row) for row in rows], summary=summary(rows))


def summary(rows: Sequence[Row]) -> dict[str, object]:
    """The numbers of the claim."""
    measured = [row for row in rows if row.refusal is None]
    ratios = [row.jacobians_s / row.ours_s for row in measured if row.jacobians_s and row.ours_s]
    layers = sum(row.layers or 0 for row in measured)
    without_rule = sum(sum(row.fallback.values()) for row in measured)
    return {
        "libraries": len({row.library for row in rows}),
        "networks": len(rows),
        "measured_as_they_are": len(measured),
        "layers": layers,
        "layers_without_rule": without_rule,
        "median_ratio": statistics.median(ratios) if ratios else None,
        "smallest_ratio": min(ratios, default=None),
        "kinds_without_rule": dict(sum((Counter(row.fallback) for row in measured), Counter()).most_common()),
    }


def show(rows: Sequence[Row]) -> None:
    """Prints the table, the refusals, and the numbers of the claim."""
    measured = [row for row in rows if row.refusal is None]
    tables.show(TITLE, COLUMNS, [row.cells() for row in measured])
    refused = [[row.library, row.network, row.refusal] for row in rows if row.refusal is not None]
    if refused:
        tables.show("Refused", ["library", "network", "why"], refused)
    for name, value in summary(rows).items():
        print(f"{name.replace('_', ' ')}: {value}")


def main() -> None:
    parser = script.parser("third_party", __doc__ or "", quick="of torch's own networks", repeats=3)
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="parts of the names of libraries or networks")
    parser.add_argument("--limit", type=positive(float), default=5.0, help="seconds for the Jacobians of a network")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the file of results")
    args: argparse.Namespace = script.parse(parser)
    warnings.simplefilter("ignore")  # of the libraries, and of kernels that are zero
    kept, rows = kept_rows(args), list[Row]()
    for network in chosen(args.networks, args.quick):
        if network.version is None:
            print(f"{network.library} is not installed: {network.name} is left out")
            continue
        key = (network.library, network.version, network.name)
        rows.append(kept[key] if key in kept else measure(network, args.repeats, args.limit))
        print(f"{network.library}, {network.name}: {rows[-1].refusal or 'measured'}", flush=True)
        save(rows, args)
    show(rows)


def chosen(names: Sequence[str] | None, quick: bool) -> list[Network]:
    """The networks that were asked for."""
    return [
        network
        for network in NETWORKS
        if (network.library == QUICK or not quick)
        and (not names or any(name.lower() in f"{network.library} {network.name}".lower() for name in names))
    ]


if __name__ == "__main__":
    main()
