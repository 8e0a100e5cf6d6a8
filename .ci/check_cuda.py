"""Compiles the CUDA sources for every target without a GPU, and reads in ptxas' report what the kernels take.

The kernels that time is spent in must not spill registers to memory, and those of Hopper must not have their matrix
products serialised. Usage: python .ci/check_cuda.py NVCC, in an environment with torch.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
# Sums of squares for layers with one position: mma::tiles<parts, result, several positions> and wgmma::tiles<parts,
# result>.
HOT = re.compile(r"3mma5tilesILi\d+ELNS0_6ResultE0ELb0E|5wgmma5tilesILi\d+ELNS0_6ResultE0E")
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<target>\S+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def compile_report(nvcc: str, source: Path, folder: Path) -> str:
    command = [
        *(nvcc, "-c", str(source), "-o", str(folder / "kernels.o"), "-Xptxas=-v", "--threads=2"),
        *("--options-file", str(ROOT / "csrc" / "cuda" / "nvcc.options")),
        *("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"),
        *(f"-isystem={path}" for path in include_paths()),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{source.name} does not compile:\n{done.stdout}")
    return done.stdout


def main(nvcc: str) -> None:
    failures, hot = [], 0
    for source in SOURCES:
        with tempfile.TemporaryDirectory() as folder:
            report = compile_report(nvcc, source, Path(folder))
        failures += [line for line in report.splitlines() if "warning" in line.lower() or "serializ" in line.lower()]
        for entry in ENTRY.finditer(report):
            spilled = int(entry["stores"]) + int(entry["loads"])
            is_hot = bool(HOT.search(entry["name"])) and int(entry["registers"]) > 16  # empty for other targets
            hot += is_hot
            print(
                f"{entry['target']:7} {entry['registers']:>3} registers {spilled:>4} bytes spilled"
                f"{' hot' if is_hot else '    '} {entry['name']}"
            )
            if is_hot and spilled:
                failures.append(f"{entry['name']} for {entry['target']} spills {spilled} bytes")
    if hot == 0:
        failures.append("no hot kernel found: has its name changed?")
    if failures:
        sys.exit("\n".join(["", *failures]))
    print(f"{hot} hot kernels without spills")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python .ci/check_cuda.py NVCC")
    main(sys.argv[1])
