"""The frame of every benchmark on a CPU: options, cores, ceilings, and the file of results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import arguments, ceilings, json_file, machine

RESULTS = Path(__file__).resolve().parents[1] / "results"
SMALL_SQUARE, SMALL_COPY = (512, 512, 512), 2**24  # of a quick run


def parser(
    name: str, description: str, quick: str, repeats: int, of_repeats: str = "rounds of the round-robin"
) -> argparse.ArgumentParser:
    """The options --quick, --threads, --repeats and --output.

    Args:
        name: The script's, which its file of results has as well.
        description: Its docstring, whose first line is the claim.
        quick: The problems of a smoke run.
        repeats: The default of --repeats.
        of_repeats: What --repeats counts.
    """
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description.splitlines()[0])
    made.add_argument("--quick", action="store_true", help=f"a smoke run {quick}; its figures mean nothing")
    made.add_argument("--threads", type=arguments.positive(int), help="cores to use (default: all)")
    made.add_argument("--repeats", type=arguments.positive(int), default=repeats, help=of_repeats)
    made.add_argument("--output", type=arguments.file, help=f"JSON file (default: benchmarks/results/{name}.json)")
    made.set_defaults(name=name)
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with the process bound to --threads cores; `output` is None where nothing is to be written."""
    args = made.parse_args()
    args.threads = machine.use_threads(args.threads)
    args.output = args.output or (None if args.quick else RESULTS / f"{args.name}.json")
    return args


def measure_ceilings(args: argparse.Namespace, shapes: Sequence[ceilings.Shape] = ()) -> ceilings.Ceilings:
    """The best rates of the machine, printed; a quick run measures them on a small square alone."""
    if args.quick:
        best = ceilings.measure(square=SMALL_SQUARE, repeats=1, copied=SMALL_COPY)
    else:
        best = ceilings.measure(shapes)
    rates = ", ".join(f"{kind} {best.rate(kind) / 1e9:.0f}" for kind in ("fp32", "bf16", "fp64"))
    print(f"\nbest measured GEMM, Gflop/s: {rates}; copy {best.bandwidth / 1e9:.1f} GB/s", flush=True)
    return best


def save(args: argparse.Namespace, best: ceilings.Ceilings | None = None, **measured: object) -> None:
    """Writes the file of results, if there is to be one: the measurements, the machine, and its best rates."""
    if args.output is not None:
        head: dict[str, object] = {"benchmark": args.name, "quick": args.quick, "machine": machine.describe()}
        if best is not None:
            head["ceilings"] = best.to_dict()
        json_file.write(args.output, head | measured)
