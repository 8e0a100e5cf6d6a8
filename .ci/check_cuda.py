"""Compiles the CUDA sources for every target without a GPU, and reads what came out: ptxas' report and machine code.

The kernels that time is spent in must not touch local memory, and ptxas must have nothing to say about any kernel.
Machine code with the matrix products of Hopper must keep to .ci/sass_rules.py, and have as many products and the
register limits that the sources ask for. Prints registers and numbers of instructions (.ci/sass_counts.py).
Needs torch, nvcc, a C++ compiler and nvdisasm, which is looked for beside nvcc and on the PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sass import Kernel, read_kernels
from sass_counts import counts_of
from sass_rules import faults_of_limits, faults_of_products, group_sizes, local_memory, register_limits

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
# What makes the sums of squares on each target: mma::tiles<parts, result, several positions> and wgmma::tiles<parts,
# result>. There is one for each number of parts.
HOT = {"sm_80": re.compile(r"mma::tiles<\d, 0, false>"), "sm_90a": re.compile(r"wgmma::tiles<\d, 0>")}
PARTS = re.compile(r"tiles<(\d)")
NUMBERS_OF_PARTS = 3
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
    """Leaves the machine code of each target in the folder, as *.cubin. Returns what the compilers said."""
    command = [
        *(nvcc, "-c", str(source), "-o", str(folder / "kernels.o"), "-Xptxas=-v", "--threads=2"),
        *("--keep", "--keep-dir", str(folder), "--options-file", str(ROOT / "csrc" / "cuda" / "nvcc.options")),
        *("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000ULL", *include_options()),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{source.name} does not compile:\n{done.stdout}")
    return done.stdout


def shapes_of_sources(folder: Path) -> dict[str, list[int]]:
    """What .ci/cuda_shapes.cpp says."""
    includes = [f"-I{ROOT / path}" for path in ("python_tests/emulator", "csrc/cuda")]
    program = [*os.environ.get("CXX", "c++").split(), "-std=c++20", "-w", "-DAHK_EMULATOR", *includes]
    subprocess.run([*program, str(ROOT / ".ci" / "cuda_shapes.cpp"), "-o", str(folder / "shapes")], check=True)
    return json.loads(subprocess.run([folder / "shapes"], stdout=subprocess.PIPE, check=True).stdout)


def short_names(mangled: list[str]) -> list[str]:
    """Such as wgmma::tiles<2, 0>, with results as their numbers."""
    text = "\n".join(mangled)
    demangled = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout
    return [
        re.sub(r"^void |ahkernels::cuda::|\(ahkernels::cuda::\w+\)", "", name).partition("(")[0]
        for name in demangled.splitlines()
    ]


def faults_of_report(report: str) -> list[str]:
    return [line.strip() for line in report.splitlines() if not ORDINARY.match(line)]


def faults_of_kernel(kernel: Kernel, name: str, shapes: dict[str, list[int]], *, hot: bool) -> list[str]:
    faults = faults_of_products(kernel) + faults_of_limits(kernel)
    sizes, limits = group_sizes(kernel), register_limits(kernel)
    if sizes:
        expected = shapes["multiply_adds_of_a_slice"][int(PARTS.search(name)[1]) - 1]
        if any(size != expected for size in sizes):
            found = sorted({size for size in sizes if size != expected})
            faults.append(f"expected {expected} multiply-adds in each group of products, found {found}")
        if sorted(limits) != sorted(shapes["register_limits"]):
            faults.append(f"expected setmaxnreg of {shapes['register_limits']}, found {limits}")
    if hot:
        faults += [f"local memory is used at {one}" for one in local_memory(kernel)]
    return faults


def check_target(
    kernels: list[Kernel], target: str, entries: dict[str, re.Match[str]], shapes: dict[str, list[int]]
) -> tuple[list[dict[str, object]], list[str]]:
    """A row for each kernel that is not empty, and what is wrong."""
    rows, failures = [], []
    for kernel, name in zip(kernels, short_names([one.name for one in kernels]), strict=True):
        entry = entries[kernel.name, target]
        hot = bool(HOT[target].fullmatch(name))
        if int(entry["registers"]) <= 16 and not hot:
            continue  # empty, for other targets
        spilled = int(entry["stores"]) + int(entry["loads"])
        row = {"target": target, "kernel": name, "registers": int(entry["registers"]), "spilled": spilled, "hot": hot}
        if hot:
            row |= counts_of(kernel).as_dict()
        rows.append(row)
        faults = faults_of_kernel(kernel, name, shapes, hot=hot)
        failures += [f"{target} {name}: {fault}" for fault in faults[:3]]
        failures += [f"{target} {name}: and {len(faults) - 3} such faults more"] if len(faults) > 3 else []
    if sum(bool(row["hot"]) for row in rows) != NUMBERS_OF_PARTS:
        failures.append(
            f"{target}: expected {NUMBERS_OF_PARTS} kernels like {HOT[target].pattern}: has a name changed?"
        )
    return rows, failures


def print_table(rows: list[dict[str, object]]) -> None:
    print(f"{'target':7} {'kernel':26} {'registers':>9} {'spilled':>7} {'mainloop':>11} {'epilogue':>11}")
    for row in rows:
        counts = [f"{row[what]} of {row[f'{what}_size']}" if what in row else "" for what in ("mainloop", "epilogue")]
        print(
            f"{row['target']:7} {row['kernel']:26} {row['registers']:>9} {row['spilled']:>7} "
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
    for source in SOURCES:
        with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
            shapes = pool.submit(shapes_of_sources, Path(name))
            report = compile_source(options.nvcc, source, Path(name))
            failures += faults_of_report(report)
            entries = {(entry["name"], entry["target"]): entry for entry in ENTRY.finditer(report)}
            for cubin in sorted(Path(name).glob("*.cubin")):
                target = f"sm_{cubin.stem.rpartition('_')[2]}"
                found = check_target(read_kernels(cubin, nvdisasm), target, entries, shapes.result())
                rows += found[0]
                failures += found[1]
    print_table(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if failures:
        sys.exit("\n".join(["", *failures]))
    print("All kernels keep to the rules, and the hot ones use no local memory.")


if __name__ == "__main__":
    main()
