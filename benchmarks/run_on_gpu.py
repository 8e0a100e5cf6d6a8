"""Everything that needs a machine with a GPU, in one command of under nine minutes.

The most urgent questions come first: whether a tile comes out right at each precision, whether the CUDA tests pass,
how fast one layer is beside the machine's ceilings, what each of its stages takes, what the hardware counters say about
its kernel, how long whole networks take, and whether memcheck finds fault. One deadline holds for all stages. A stage
that exceeds its share is ended with all that it has started, and the next begins. The JSON files in the output folder
are whole after every row, and gpu.log has all output. The exit status counts the stages that failed.

It needs torch with CUDA, an nvcc of the same major version or a library that was built elsewhere (--cuda-library), and
the test extra; the package itself need not be installed. ncu and compute-sanitizer are used where they are on the PATH.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import json_file
from benchmarks.common.arguments import folder, positive
from benchmarks.gpu import prebuilt, stages
from benchmarks.gpu.stages import Stage

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
CUDA_TESTS = ("python_tests/ops/test_cuda.py", "python_tests/ops/test_ops.py", "-k", "cuda")
SMALL_CASES = ("python_tests/ops/test_cuda.py", "-k", "test_precisions and highest and (1-1-2-3-5 or 40-1-100-5-64)")
# On a CPU: the kernels' source on the emulator of their instructions.
EMULATED_TESTS = ("python_tests/ops/test_cuda_kernels.py", "-k", "test_zero_factors or test_same_bits")
EMULATED_CASES = ("python_tests/ops/test_cuda_kernels.py", "-k", "test_zero_factors")
# A stage that hangs with a child that hangs, deaf to requests to end, and one that crashes.
HANG = (
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)']); print('hangs'); time.sleep(3600)"
)
CRASH = "import os; print('crashes'); os.abort()"


def pytest(*arguments: str) -> list[str]:
    return [PYTHON, "-m", "pytest", "-q", "--maxfail=20", "-p", "no:cacheprovider", *arguments]


def build(library: Path | None) -> tuple[Stage, str]:
    """The stage that builds the extension in place, with the library where it fits, and the library's origin."""
    reason = None if library is None else prebuilt.reason_against(library)
    if library is not None and reason is None:
        return Stage("build", _build_command(), 90, {"AHKERNELS_CUDA": str(library.resolve())}), "prebuilt"
    environment = {"AHKERNELS_CUDA": "required", "NVCC_APPEND_FLAGS": "-DAHK_WATCHDOG", "MAX_JOBS": str(os.cpu_count())}
    return Stage("build", _build_command(), 150, environment), f"built here: {reason or 'no library was given'}"


def _build_command() -> list[str]:
    return [PYTHON, "setup.py", "build_ext", "--inplace"]


def all_stages(device: str, quick: bool, output: Path) -> list[Stage]:
    """The stages after the build, in the order in which their answers are needed; weights are about their seconds."""
    on_gpu = device == "cuda"
    # torch's own allocator hides writes past the end of a tensor from memcheck.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    sanitizer = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "3", "--target-processes", "all"]

    def benchmark(name: str) -> list[str]:
        asked = ["--device", device, "--output", str(output / f"{name}.json"), *(["--quick"] if quick else [])]
        return [PYTHON, "-m", f"benchmarks.gpu.{name}", *asked]

    return [
        Stage("tile", benchmark("cuda_tile"), 30),
        Stage("tests", pytest(*(CUDA_TESTS if on_gpu else EMULATED_TESTS)), 90),
        Stage("layer", benchmark("cuda_layer"), 130),
        Stage("stages", benchmark("cuda_stages"), 30),
        Stage("counters", benchmark("cuda_counters"), 50),
        Stage("networks", benchmark("cuda_networks"), 70),
        Stage("memcheck", [*sanitizer, *pytest(*(SMALL_CASES if on_gpu else EMULATED_CASES))], 50, uncached),
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_on_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a smoke run, whose figures mean nothing")
    parser.add_argument("--seconds", type=positive(float), default=520, help="deadline for everything")
    parser.add_argument("--output", type=folder, default=ROOT / "benchmarks" / "results", help="folder")
    parser.add_argument("--cuda-library", type=Path, help="_cuda library built elsewhere; used where it fits")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these stages alone")
    parser.add_argument(
        "--plant", action="store_true", help="with a stage that hangs and one that crashes: a rehearsal"
    )
    args = parser.parse_args()
    if args.cuda_library is not None and not args.cuda_library.is_file():
        parser.error(f"argument --cuda-library: expected the path of a library, got '{args.cuda_library}'")
    names = [stage.name for stage in all_stages(args.device, args.quick, args.output)]
    if args.only and not set(args.only) <= set(names):
        parser.error(f"argument --only: expected some of {', '.join(names)}, got '{' '.join(args.only)}'")
    return args


def planned(args: argparse.Namespace) -> tuple[list[Stage], str]:
    """The stages of this run, and where the CUDA library comes from."""
    every = all_stages(args.device, args.quick, args.output.resolve())
    found = [stage for stage in every if not args.only or stage.name in args.only]
    if args.plant:
        planted = [Stage("hang", [PYTHON, "-c", HANG], 1), Stage("crash", [PYTHON, "-c", CRASH], 1)]
        found[1:1] = planted
    if args.device == "cpu":
        return found, "none: the package as it is built here, on a CPU"
    stage, library = build(args.cuda_library)
    in_place = {"PYTHONPATH": str(ROOT)}  # also for a process that a stage starts in another folder
    return [stage, *(Stage(s.name, s.command, s.weight, {**in_place, **s.environment}) for s in found)], library


def main() -> int:
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    log = args.output / "gpu.log"
    log.write_bytes(b"")
    records: Sequence[dict[str, object]] = []
    plan, library = planned(args)
    record = {
        "benchmark": "gpu",
        "quick": args.quick,
        "deadline_s": args.seconds,
        "library": library,
        "stages": records,
    }
    for done in stages.run(plan, args.seconds, ROOT, log):
        records.append(done)
        json_file.write(args.output / "gpu.json", record)
        stages.tell(done, lambda text: print(text, flush=True))
    return stages.failures(records)


if __name__ == "__main__":
    sys.exit(main())
