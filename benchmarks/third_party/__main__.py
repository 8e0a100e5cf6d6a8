"""Claim tested: networks of many libraries are measured as they are, with the numbers of autograd, and fast.

Tiny networks with random weights, as each library makes them. The package gets the network, what a user would call it
with, and where that is not the outputs alone, a function that takes them out of what the network returns. The table has
the sentence of those that are refused; of the others how many layers have no rule; the time of the alignment of all
layers beside that from the Jacobian of each layer by torch.func; and how far kernels and alignments are from those of
torch.autograd.grad in float64, by loops over samples and outputs, in the first, the middle and the last layer and one
of the rarest kind, for the network in float32 and in float64. Beside the former stands how far these same loops in
float32 are, which is what the rounding of the network itself does.

The libraries are listed in requirements.txt; those that are not installed are left out. `--resume` keeps the rows of
networks that the file of results has.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.common import script, tables
from benchmarks.common.arguments import positive
from benchmarks.third_party.measuring import measure
from benchmarks.third_party.networks import NETWORKS
from benchmarks.third_party.problem import OUTPUTS, SAMPLES, Network
from benchmarks.third_party.row import COLUMNS, Row, summary

QUICK = "torch"  # the library whose networks a quick run has
TITLE = "Networks of other libraries"
TEXT = (
    "n = {n}, o = {o}. Times in ms: the median of our calls, and one pass over the layers by Jacobians, from as many "
    "layers as {limit:g} s allow. Differences are relative to autograd in float64, the largest over a few layers: of "
    "kernels by their Frobenius norms, for autograd in float32, for ours in float32 and for ours in float64, and of "
    "alignments. Where a library does not run in float64, they are relative to autograd in float32."
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
    warnings.simplefilter("ignore")  # of libraries while they are imported
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
