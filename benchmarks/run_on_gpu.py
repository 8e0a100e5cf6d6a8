"""Everything a machine with a GPU is needed for, in one command and under ten minutes.

Builds the extension in place, runs the test suite (CPU and GPU), compute-sanitizer on small sizes, and the GPU
benchmarks with the ceilings of the machine. Each stage has a time limit, its outcome goes to the JSON as soon as it is
known, and a stage that fails does not stop the next. The exit status counts the stages that failed.

Needs torch with CUDA, an nvcc of the same major version, and the test extra (pytest, scipy, matplotlib, scikit-learn,
pandas); compute-sanitizer is left out, and said to be, where it is not on the PATH.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
SMALL_CASES = "test_precisions or test_streams"
TAIL = 4000  # characters of a stage's output that the JSON keeps


@dataclass
class Stage:
    """A command with a limit in seconds."""

    name: str
    command: list[str]
    limit: int
    environment: dict[str, str] = field(default_factory=dict)


def sanitizer(tool: str) -> list[str]:
    pytest = [
        PYTHON,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "python_tests/test_cuda.py",
        "-k",
        SMALL_CASES,
    ]
    return ["compute-sanitizer", "--tool", tool, "--error-exitcode", "3", "--target-processes", "all", *pytest]


def stages(output: Path, quick: bool) -> list[Stage]:
    benchmark = ["--device", "cpu", "--quick"] if quick else []
    # torch's own allocator hides writes past the end of a tensor from memcheck.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    found = [
        Stage("build", [PYTHON, "setup.py", "build_ext", "--inplace"], 180, {"AHKERNELS_CUDA": "required"}),
        Stage("tests", [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"], 240),
        Stage("memcheck", sanitizer("memcheck"), 90, uncached),
        Stage("racecheck", sanitizer("racecheck"), 90, uncached),
        Stage(
            "layer", [PYTHON, "benchmarks/cuda_layer.py", "--output", str(output / "cuda_layer.json"), *benchmark], 150
        ),
        Stage(
            "networks",
            [PYTHON, "benchmarks/cuda_networks.py", "--output", str(output / "cuda_networks.json"), *benchmark],
            150,
        ),
    ]
    return [stage for stage in found if not quick or stage.name in ("layer", "networks")]


def run(stage: Stage) -> dict[str, object]:
    print(f"\n=== {stage.name}: {' '.join(stage.command)}", flush=True)
    record: dict[str, object] = {
        "stage": stage.name,
        "command": [part.replace(PYTHON, "python") for part in stage.command],
    }
    if shutil.which(stage.command[0]) is None:
        return record | {"outcome": f"left out: {stage.command[0]} is not on the PATH"}
    start = time.monotonic()
    try:
        done = subprocess.run(
            stage.command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | stage.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=stage.limit,
        )
        outcome, text = ("passed" if done.returncode == 0 else f"failed with status {done.returncode}"), done.stdout
    except subprocess.TimeoutExpired as late:
        outcome = f"stopped after {stage.limit} s"
        text = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
    seconds = time.monotonic() - start
    print(text[-TAIL:], f"=== {stage.name}: {outcome}, {seconds:.0f} s", sep="\n", flush=True)
    return record | {"outcome": outcome, "seconds": seconds, "output": text[-TAIL:].replace(str(ROOT), ".")}


def machine() -> dict[str, object]:
    """Of a process of its own, so that this one holds no memory of the device."""
    code = "import json; from common.device import describe; import torch; " + (
        "print(json.dumps(describe('cuda' if torch.cuda.is_available() else 'cpu')))"
    )
    done = subprocess.run([PYTHON, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the JSON files"
    )
    parser.add_argument("--quick", action="store_true", help="the benchmarks alone, tiny and on the CPU: a smoke run")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    record: dict[str, object] = {"machine": machine(), "stages": []}
    for stage in stages(args.output.resolve(), args.quick):
        record["stages"].append(run(stage))
        (args.output / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    return sum(not str(done["outcome"]).startswith(("passed", "left out")) for done in record["stages"])


if __name__ == "__main__":
    sys.exit(main())
