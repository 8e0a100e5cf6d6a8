"""Plants faults, one at a time, and says which of them the tests notice.

    python -m python_tests.mutations                 # all that results.json does not have yet, then the table
    python -m python_tests.mutations --survivors     # once more those that nothing noticed, say after new tests
    python -m python_tests.mutations --only NAME ... # once more these
    python -m python_tests.mutations --table         # the table alone

All happens in a copy of the repository (build/mutations), and a result is written as soon as it is there, so that a run
which was interrupted goes on where it was. To measure everything anew, remove results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from python_tests.mutations.all_mutants import MUTANTS
from python_tests.mutations.mutant import Mutant
from python_tests.mutations.tree import ROOT, Tree

RESULTS = Path(__file__).with_name("results.json")
FOLDER = ROOT / "build" / "mutations"
TIMEOUT = 120  # seconds: tests that do not end have noticed something, too
SUMMARY = re.compile(r"^(FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


class Result(NamedTuple):
    """What the tests said of a mutant.

    Attributes:
        killed_by: The first test that noticed it; "" for none.
        how: Whether that "fails", has an "error" before it begins, "crashes" or does "not end".
        seconds: The time that the tests took.
    """

    killed_by: str
    how: str
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser("python -m python_tests.mutations", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[one.name for one in MUTANTS], default=[])
    parser.add_argument("--survivors", action="store_true")
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found = {name: Result(**one) for name, one in content.items()}
    survivors = [name for name, one in found.items() if chosen.survivors and not one.killed_by]
    wanted = [one for one in MUTANTS if one.name in (chosen.only or survivors) or one.name not in found]
    if chosen.only:
        wanted = [one for one in wanted if one.name in chosen.only]
    if wanted and not chosen.table:
        measure(wanted, found)
    print(table(found))


def measure(mutants: Sequence[Mutant], found: dict[str, Result]) -> None:
    """Runs the tests with each of the mutants, and in the end those that noticed something without any."""
    tree = Tree(FOLDER, MUTANTS)
    tree.update()
    killers: dict[str, None] = {}
    for mutant in mutants:
        found[mutant.name] = result = run(tree, mutant, mutant.tests)
        in_order = {one.name: found[one.name]._asdict() for one in MUTANTS if one.name in found}
        RESULTS.write_text(json.dumps(in_order, indent=1) + "\n")
        print(f"{mutant.name}: {result.how} {result.killed_by or 'survives'} ({result.seconds} s)", flush=True)
        if result.how == "fails":
            killers[result.killed_by] = None
    without = run(tree, None, list(killers)) if killers else None
    if without and without.killed_by:
        sys.exit(f"mutations: expected tests that pass without a mutant, got {without.killed_by}, which {without.how}")


def run(tree: Tree, mutant: Mutant | None, tests: Sequence[str]) -> Result:
    """Runs tests until the first one fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", *tests]
    start = time.monotonic()
    with tree.planted(mutant) as environment:
        process = subprocess.Popen(
            command,
            cwd=FOLDER,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=TIMEOUT if mutant else None)
        except subprocess.TimeoutExpired:
            return Result(tests[0], "does not end", TIMEOUT)
        finally:
            if process.poll() is None:  # with the processes that tests have started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = round(time.monotonic() - start, 1)
    if process.returncode == 0:
        return Result("", "", seconds)
    if process.returncode < 0:
        return Result(tests[0], "crashes", seconds)
    summary = SUMMARY.search(output)
    if summary is None:
        sys.exit(f"mutations: expected a summary of pytest, got exit status {process.returncode}:\n{output}")
    return Result(summary[2], {"FAILED": "fails", "ERROR": "has an error"}[summary[1]], seconds)


def table(found: Mapping[str, Result]) -> str:
    """A line for each mutant, and a sentence about each that nothing noticed."""
    lines = [f"{'mutant':<50} {'file':<50} {'s':>6}  killed by"]
    survivors = []
    for mutant in MUTANTS:
        if mutant.name in found:
            result = found[mutant.name]
            lines.append(f"{mutant.name:<50} {mutant.file:<50} {result.seconds:6.1f}  {result.killed_by or 'nothing'}")
            if not result.killed_by:
                survivors.append(f"{mutant.name}: {mutant.fault}. {mutant.unnoticed or 'No test notices it yet.'}")
    count = sum(one.name in found for one in MUTANTS)
    summary = f"{count} of {len(MUTANTS)} mutants measured: {count - len(survivors)} killed, {len(survivors)} survived"
    return "\n".join([*lines, "", summary, *survivors])


if __name__ == "__main__":
    main()
