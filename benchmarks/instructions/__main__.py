"""Claim tested: the CPU ops execute no more instructions than when their counts were stored.

Each op runs on small fixed layers and one thread, and callgrind counts: a loss of a few percent, which times on a busy
machine would hide, shows at once. Callgrind knows AVX2 and not AVX-512, so the AVX2 kernels are counted and the
portable ones, which share all of their source but the tile's instructions. Without --check the counts become the stored
ones; with it, a count that differs from the stored one by more than the tolerance ends in exit status 1.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.common import arguments, json_file, machine, tables
from benchmarks.common.op_problems import OpProblem
from benchmarks.common.script import RESULTS
from benchmarks.instructions import callgrind

CAPABILITIES = ("avx2", "portable")
STORED = RESULTS / "instructions.json"
# Counts of one build are the same to a few instructions, so that with the compiler they were stored with, this is
# room for a change of the standard library's headers alone. Other compilers, or options of it, make other code of the
# same source: even -O2 in place of -O3 makes up to 71% more of it, so that with them only a loss of vectorisation can
# be told.
TOLERANCE, OTHER_COMPILER = 0.01, 1.0
PROBLEMS = [  # small, since callgrind takes a second for ten million multiply-adds
    OpProblem(n=60, o=5, d=128, m=128),
    OpProblem(n=100, o=1, d=96, m=96),
    OpProblem(n=50, o=3, d=36, m=32, s=4),
    OpProblem(n=8, o=4, d=36, m=32, s=16),
    OpProblem(n=10, o=4, d=36, m=32, s=36, by_jacobian=True),
]
COLUMNS = ["op", "layer", "kernels", "instructions", "for each useful flop", "stored", "difference, %"]
TEXT = (
    "Instructions in the package's own library on one thread, as callgrind counts them; those of torch, Python and the "
    "C library are left out. Useful flops are two for each multiply-add that the op cannot do without, in "
    "tangent_moments those of the square alone; one fp32 multiply-add of AVX2 is 16 of them."
)


def count_all() -> None:
    """The part that runs under callgrind."""
    import torch

    torch.set_num_threads(1)
    jobs = {f"{op}, {problem}": job for problem in PROBLEMS for op, (job, _) in problem.jobs().items()}
    for job, _ in OpProblem(n=2, o=2, d=2, m=2).jobs().values():
        job()  # some things are done only once in a process
    callgrind.count(jobs)


def measure(keep: Path | None) -> dict[str, dict[str, int]]:
    """Capability -> "op, layer" -> instructions."""
    from ahkernels import _C

    def of_capability(capability: str) -> dict[str, int]:
        environment = {"AHKERNELS_CPU_CAPABILITY": capability}
        return callgrind.measure("benchmarks.instructions", ["--counted"], environment, Path(_C.__file__), keep)

    with ThreadPoolExecutor() as pool:
        return dict(zip(CAPABILITIES, pool.map(of_capability, CAPABILITIES), strict=True))


def compare(counts: dict[str, dict[str, int]], stored: dict[str, dict[str, int]]) -> list[list[tables.Cell]]:
    """Rows of COLUMNS."""
    rows: list[list[tables.Cell]] = []
    for problem in PROBLEMS:
        for op, (_, flops) in problem.jobs().items():
            for capability in CAPABILITIES:
                name = f"{op}, {problem}"
                count, before = counts[capability][name], stored.get(capability, {}).get(name)
                change = None if before is None else round(100 * (count / before - 1), 2)
                per_flop = tables.rounded(count / flops)
                rows.append([op, str(problem), capability, count, per_flop, before, change])
    return rows


def check(rows: list[list[tables.Cell]], stored_compiler: str, compiler: str) -> int:
    """Exit status, and why."""
    same = compiler == stored_compiler
    tolerance = TOLERANCE if same else OTHER_COMPILER
    print(f"\ncounts stored with {stored_compiler}, this build is by {compiler}: tolerance {100 * tolerance:g}%")
    failures = [
        f"{kernels} {op}, {layer}: {'no stored count' if change is None else f'{change:+} %'}"
        for op, layer, kernels, *_, change in rows
        # Fewer instructions are no failure of another compiler; of the same one they are a stored value out of date.
        if change is None or change > 100 * tolerance or (same and change < -100 * tolerance)
    ]
    if failures:
        print(
            "instruction counts differ from the stored ones by more than the tolerance:",
            *failures,
            "If a change of the kernels is meant to do this, store the new counts: python -m benchmarks.instructions. "
            "With --keep FOLDER, callgrind_annotate shows the functions that they come from.",
            sep="\n  ",
            file=sys.stderr,
        )
    return 1 if failures else 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the stored counts and write nothing")
    parser.add_argument("--output", type=arguments.file, default=STORED, help="JSON file to compare with and to write")
    parser.add_argument("--keep", type=arguments.folder, help="folder for callgrind's files")
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.counted:
        return count_all()

    import ahkernels as ah

    facts = ah.build_info()
    if "avx2" not in facts["cpu_capability"]:
        sys.exit(f"instructions are counted with the AVX2 kernels; this machine has {facts['cpu_capability']}")
    record = (
        arguments.stored(parser, "--output", args.output, "counts")
        if args.output.exists()
        else {"compiler": "none", "counts": {}}
    )
    counts = measure(args.keep)
    rows = compare(counts, record["counts"])
    title = "Instructions of the CPU ops"
    tables.show(title, COLUMNS, rows)
    if args.check:
        sys.exit(check(rows, record["compiler"], facts["compiler"]))
    record = tables.record(title, TEXT, COLUMNS, rows) | {"machine": machine.describe()}
    json_file.write(args.output, record | {"compiler": facts["compiler"], "counts": counts})


if __name__ == "__main__":
    main()
