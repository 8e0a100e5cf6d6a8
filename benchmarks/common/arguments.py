"""What every benchmark on a CPU can be asked for."""

import argparse

from comparison import options


def parser(
    description: str, quick: str, repeats: int, of_repeats: str = "rounds of the round-robin"
) -> argparse.ArgumentParser:
    """--quick, --threads, --repeats and --output; `quick` says what a smoke run is on."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--quick", action="store_true", help=f"a smoke run {quick}; its figures mean nothing")
    made.add_argument("--threads", type=options.positive(int), help="cores to use (default: all)")
    made.add_argument("--repeats", type=options.positive(int), default=repeats, help=of_repeats)
    made.add_argument("--output", type=options.file, help="JSON file (default: in benchmarks/results/)")
    return made
