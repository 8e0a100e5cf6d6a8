"""Compiles the CUDA sources for every target without a GPU, and reads what came out: ptxas' report and machine code.

The kernels that time is spent in must not touch local memory, and ptxas must have nothing to say about any kernel.
Machine code with the matrix products of Hopper must keep to .ci/sass_rules.py, and have the products and the register
limits that the sources ask for. Prints registers and numbers of instructions (.ci/sass_counts.py).
Needs torch, nvcc, c++filt and nvdisasm, which is looked for beside nvcc and on the PATH.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from sass import Kernel, read_kernels
from sass_counts import counts_of
from sass_rules import faults_of_limits, faults_of_products, local_memory, register_limits, sizes_of_groups

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
# What makes the sums of squares of single layers on each target, for each number of parts, of entries of K and of what
# means leave of near-constant kernels: mma::tiles<parts, promoted sums over k, sum of layers, result, deviations>, and
# wgmma::tiles likewise.
HOT = {
    "sm_80": re.compile(r"mma::tiles<(?P<parts>\d), (true|false), false, squares, (?P<deviations>true|false)>"),
    "sm_90a": re.compile(r"wgmma::tiles<(?P<parts>\d), (true|false), false, squares, (?P<deviations>true|false)>"),
}
PARTS = re.compile(r"tiles<(?P<parts>\d)")
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<target>\S+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
# Everything else in the report is a warning: products one by one, a setmaxnreg or a limit of registers that is ignored.
ORDINARY = re.compile(
    r"ptxas info +: (\d+ bytes gmem|Compiling entry function |Function properties for |Used \d+ registers|Compile time)"
    r"|\s+\d+ bytes stack frame, |$"
)


def include_options() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    return [f"-isystem={path}" for path in include_paths()]


def compile_source(nvcc: str, source: Path, folder: Path) -> str:
    """Makes the folder, with the machine code of each target as *.cubin. Returns what the compilers said."""
    folder.mkdir()
    command = [
        *(nvcc, "-c", str(source), "-o", str(folder / "kernels.o"), "-Xptxas=-v", "--threads=2"),
        *("--keep", "--keep-dir", str(folder), "--options-file", str(ROOT / "csrc" / "cuda" / "nvcc.options")),
        *("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000ULL", *include_options()),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{source.name} does not compile:\n{done.stdout}")
    return done.stdout


def constant(name: str, header: str = "cuda/mainloop_wgmma.cuh") -> int:
    found = re.search(rf"\b{name} = (\d+)[,;]", (ROOT / "csrc" / header).read_text())
    if found is None:
        sys.exit(f"csrc/{header}: expected {name} = a number: has the name changed?")
    return int(found[1])


def multiply_adds_of_a_slice(parts: int) -> int:
    """For 64 rows of a tile: those of all pairs of parts that matter (for_each_product in csrc/cuda/problem.cuh)."""
    return parts * (parts + 1) // 2 * 64 * constant("kTile", "tiling.h") * constant("kSlice")


def short_names(mangled: list[str]) -> list[str]:
    """Such as wgmma::tiles<2, squares, false>."""
    header = (ROOT / "csrc" / "cuda" / "problem.cuh").read_text()
    results = re.findall(r"\bk(\w+),", re.search(r"enum class Result {(.*?)}", header, re.DOTALL)[1])
    text = "\n".join(mangled)
    demangled = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout
    named = re.sub(r"\(ahkernels::cuda::Result\)(\d+)", lambda number: results[int(number[1])].lower(), demangled)
    return [re.sub(r"^void |ahkernels::cuda::", "", name).partition("(")[0] for name in named.splitlines()]


def faults_of_report(report: str) -> list[str]:
    return [line.strip() for line in report.splitlines() if not ORDINARY.match(line)]


def faults_of_kernel(kernel: Kernel, name: str, *, hot: bool) -> list[str]:
    faults = faults_of_products(kernel) + faults_of_limits(kernel)
    groups, limits = sizes_of_groups(kernel), register_limits(kernel)
    if groups:
        expected = multiply_adds_of_a_slice(int(PARTS.search(name)["parts"]))
        if found := sorted({size for group in groups for size in group.values() if size != expected}):
            faults.append(f"expected {expected} multiply-adds for 64 rows in each group of products, found {found}")
        asked = [constant("kProducerRegisters"), constant("kGroupRegisters")]
        if sorted(limits) != asked:
            faults.append(f"expected setmaxnreg of {asked}, found {limits}")
    if hot:
        faults += [f"local memory is used at {one}" for one in local_memory(kernel)]
    return faults


def check_target(
    kernels: list[Kernel], target: str, entries: dict[str, re.Match[str]]
) -> tuple[list[dict[str, object]], list[str]]:
    """A row for each kernel that is not empty, and what is wrong."""
    rows, failures = [], []
    for kernel, name in zip(kernels, short_names([one.name for one in kernels]), strict=True):
        entry = entries[kernel.name, target]
        hot = HOT[target].fullmatch(name)
        if int(entry["registers"]) <= 16 and not hot:
            continue  # empty, for other targets
        spilled = int(entry["stores"]) + int(entry["loads"])
        row = {
            "target": target,
            "kernel": name,
            "registers": int(entry["registers"]),
            "spilled": spilled,
            "hot": bool(hot),
        }
        if hot:
            row |= counts_of(kernel).as_dict()
        rows.append(row)
        faults = faults_of_kernel(kernel, name, hot=bool(hot))
        failures += [f"{target} {name}: {fault}" for fault in faults[:3]]
        failures += [f"{target} {name}: and {len(faults) - 3} such faults more"] if len(faults) > 3 else []
    return rows, failures


def missing_kernels(rows: list[dict[str, object]]) -> list[str]:
    """Where there is no hot kernel for a number of parts, a name has changed."""
    names = {target: [row["kernel"] for row in rows if row["target"] == target] for target in HOT}
    matches = {target: [hot for name in names[target] if (hot := HOT[target].fullmatch(name))] for target in HOT}
    found = {(target, hot["parts"], hot["deviations"]) for target in HOT for hot in matches[target]}
    return [
        f"{target}: expected a kernel like {HOT[target].pattern} for {parts} parts, {deviations} at the end, found none"
        for target in HOT
        for parts in "123"
        for deviations in ("false", "true")
        if (target, parts, deviations) not in found
    ]


def print_table(rows: list[dict[str, object]]) -> None:
    print(f"{'target':7} {'kernel':45} {'registers':>9} {'spilled':>7} {'mainloop':>11} {'epilogue':>11}")
    for row in rows:
        counts = [f"{row[what]} of {row[f'{what}_size']}" if what in row else "" for what in ("mainloop", "epilogue")]
        print(
            f"{row['target']:7} {row['kernel']:45} {row['registers']:>9} {row['spilled']:>7} "
            f"{counts[0]:>11} {counts[1]:>11}".rstrip()
        )
    print("mainloop: instructions for 64 (wgmma) or 32 (mma) numbers along k; epilogue: from one mainloop to the next;")
    print("the shortest way through, of all there are.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("nvcc")
    parser.add_argument("--json", type=Path, help="file that the table goes to, with instructions by name")
    options = parser.parse_args()
    nvdisasm = shutil.which(Path(options.nvcc).with_name("nvdisasm")) or shutil.which("nvdisasm")
    if nvdisasm is None:
        sys.exit(f"nvdisasm: expected beside {options.nvcc} or on the PATH: pip install nvidia-cuda-nvdisasm")

    rows, failures = [], []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
        folders = [Path(name) / source.stem for source in SOURCES]
        reports = pool.map(compile_source, repeat(options.nvcc), SOURCES, folders)
        for folder, report in zip(folders, reports, strict=True):
            failures += faults_of_report(report)
            entries = {(entry["name"], entry["target"]): entry for entry in ENTRY.finditer(report)}
            for cubin in sorted(folder.glob("*.cubin")):
                target = f"sm_{cubin.stem.rpartition('_')[2]}"
                found = check_target(read_kernels(cubin, nvdisasm), target, entries)
                rows += found[0]
                failures += found[1]
    failures += missing_kernels(rows)
    print_table(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if failures:
        sys.exit("\n".join(["", *failures]))
    print("All kernels keep to the rules, and the hot ones use no local memory.")


if __name__ == "__main__":
    main()
