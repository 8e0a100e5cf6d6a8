"""Instructions that a job executes in one shared library, counted by valgrind's callgrind.

A count has no noise: it is the same in every run and on every processor, however busy. `measure` runs a module under
callgrind, and the module passes its jobs to `count`; what runs before, such as the import of torch, is not instrumented
at all. Only instructions of the library itself count. Those of the C library, Python and torch do not: they are not
ours, and they choose their code by the processor.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Requests to callgrind are special instructions, which valgrind's header spells for the C compiler.
_REQUESTS = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void zero(void) { CALLGRIND_ZERO_STATS; }
void dump(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
"""
_LIBRARY = "AHKERNELS_CALLGRIND_REQUESTS"  # names the compiled requests to the module


def count(jobs: Mapping[str, Callable[[], object]]) -> None:
    """Runs each job once and keeps its count under its name; to be called once, in a module under `measure`."""
    requests = ctypes.CDLL(os.environ[_LIBRARY])
    requests.start()
    for name, job in jobs.items():
        requests.zero()
        job()
        requests.dump(name.encode())


def measure(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], library: Path, keep: Path | None = None
) -> dict[str, int]:
    """Instructions that each job of the module executes in `library`, by the job's name.

    Args:
        module: What `python -m` runs, from the repository root.
        arguments: Its command line.
        environment: Added to the environment of this process.
        library: The shared library whose instructions count.
        keep: A folder for callgrind's files, which callgrind_annotate shows line by line.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if shutil.which("valgrind") is None or compiler is None:
        sys.exit("counting instructions needs valgrind and a C compiler (Debian and Ubuntu: apt install valgrind gcc)")
    with tempfile.TemporaryDirectory() as folder:
        requests, files = Path(folder, "requests.so"), (keep or Path(folder)).resolve()
        files.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", requests]
        if subprocess.run(command, input=_REQUESTS, text=True).returncode != 0:
            sys.exit("counting instructions needs valgrind's own headers (Fedora: dnf install valgrind-devel)")
        name = f"callgrind.{os.getpid()}.{environment.get('AHKERNELS_CPU_CAPABILITY', '')}"
        subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={files / name}"),
                *("--quiet", sys.executable, "-m", module, *arguments),
            ],
            cwd=ROOT,
            env={**os.environ, **environment, _LIBRARY: str(requests), "OMP_NUM_THREADS": "1"},
            check=True,
        )
        return dict(_read(path, library) for path in sorted(files.glob(f"{name}.*"), key=lambda p: int(p.suffix[1:])))


def _read(path: Path, library: Path) -> tuple[str, int]:
    """Name of the job, and the sum of the costs of the library's own lines, in callgrind's profile format."""
    name, total, ours, objects = "", 0, False, {}
    called = False
    for line in path.read_text().splitlines():
        if line.startswith("desc: Trigger: Client Request: "):
            name = line.rpartition("Client Request: ")[2]
        elif found := re.match(r"c?ob=\((\d+)\)(?: (.*))?$", line):
            if found[2] is not None:  # a name is spelled once and then goes by its number
                objects[found[1]] = Path(found[2]).resolve()
            if line.startswith("ob="):
                ours = objects[found[1]] == library.resolve()
        elif line.startswith("calls="):
            called = True  # the next line has the cost of the whole call
        elif found := re.match(r"[-+*\d]\S* (\d+)$", line):
            total += int(found[1]) if ours and not called else 0
            called = False
    return name, total
