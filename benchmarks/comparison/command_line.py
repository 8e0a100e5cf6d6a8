"""The command line of benchmarks/compare.py."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Sequence

import torch

from benchmarks.common.arguments import file, folder, positive, stored
from benchmarks.common.script import RESULTS
from benchmarks.comparison import environments
from benchmarks.comparison.contenders import UNIT, Contender, discover
from benchmarks.comparison.tasks import sweeps, tables


class Selection:
    """Which contenders take part in which task, from patterns TASK or TASK/CONTENDER."""

    def __init__(self, patterns: Sequence[str], contenders: Sequence[Contender]) -> None:
        self.patterns = [(*pattern.split("/", 1), "*")[:2] for pattern in patterns] or [("*", "*")]
        self.contenders = contenders

    @property
    def whole(self) -> bool:
        """Whether tasks are measured with all of their contenders."""
        return all(contender == "*" for _, contender in self.patterns)

    def of(self, name: str) -> list[Contender]:
        """The contenders that match a task, and ours, which ratios are taken to; none where none matches."""
        wanted = [contender for task, contender in self.patterns if fnmatch.fnmatch(name, task)]
        found = [one for one in self.contenders if any(fnmatch.fnmatch(one.name, pattern) for pattern in wanted)]
        return [one for one in self.contenders if one in found or one.name == UNIT] if found else []


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; a value that does not fit ends the process with a sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="This package beside what people use today: measures, and writes the page.",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TASK[/CONTENDER]", help="patterns such as 'alignment*'"
    )
    parser.add_argument("--resume", action="store_true", help="keep the finished tasks of the file, measure the others")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, whose figures mean nothing; writes no results"
    )
    parser.add_argument("--output", type=file, help="JSON file (default: results/comparison-DEVICE.json)")
    parser.add_argument("--threads", type=positive(int), help="cores to use (default: all)")
    parser.add_argument(
        "--memory-limit", type=positive(float), metavar="GIB", help="of a contender (default: 2/3 of all)"
    )
    parser.add_argument(
        "--environments", type=folder, default=environments.DEFAULT, help="folder of virtual environments"
    )
    parser.add_argument(
        "--page-only", action="store_true", help="make the page from the JSON files, and measure nothing"
    )
    args = parser.parse_args(given)
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.found = discover()
    args.selection = Selection(args.only, args.found)
    args.tables = tables(args.device, args.quick)
    args.sweeps = sweeps(args.device, args.quick)
    names = [one.name for one in (*args.tables, *args.sweeps)]
    for pattern in args.only:
        if not any(Selection([pattern], args.found).of(name) for name in names):
            contenders = ", ".join(one.name for one in args.found)
            parser.error(
                f"argument --only: expected patterns of a task, or of a task and a contender, got {pattern!r}; "
                f"tasks: {', '.join(names)}; contenders: {contenders}"
            )
    if args.resume and args.quick and args.output is None:
        parser.error("argument --resume: expected --output with --quick, which writes no file otherwise")
    if args.output is None and not args.quick and args.selection.whole:
        args.output = RESULTS / f"comparison-{args.device}.json"
    if args.output is not None and args.output.exists() and (args.resume or args.only):
        stored(parser, "--output", args.output, "configuration")
    return args
