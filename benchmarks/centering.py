"""Claim tested: alignments centered per output cost what globally centered ones do, and both together little more.

All layers of an MLP of depth 10 and width 256 (10 outputs) from model and data, and one layer of width 256 from its
factors, for n = 64, 256 and 1000. Each variant is served by a process of its own, and the processes take turns;
`--before` adds global centering by the package in another folder, such as a checkout of an earlier version. Ratios are
between medians. The floor is the flops of half of each square, and of the passes through the network, over the best
fp32 GEMM rate of the run.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

import ahkernels as ah
from benchmarks.common import script, workload

VARIANTS = {"global": "global", "per output": "per_output", "both": ("global", "per_output")}
BEFORE = "before"
ROOT = Path(__file__).resolve().parents[1]
SECONDS = 0.1  # a round takes so long: shorter calls are repeated within it
OUTPUTS, WIDTH, DEPTH = 10, 256, 10


def job(task: str, n: int, variant: str) -> Callable[[], object]:
    """The job that is timed; `before` asks for nothing that an earlier version lacks."""
    if task == "all layers":
        (x, y), model = workload.images(n), workload.mlp(DEPTH, WIDTH)
        options = {} if variant == BEFORE else {"centering": VARIANTS[variant]}
        return lambda: ah.layerwise_alignment(model, x, y, precision="highest", **options)
    a, g, y = workload.factors(n, OUTPUTS, WIDTH)
    v = torch.nn.functional.one_hot(y, OUTPUTS).double()
    v = (v - v.mean()).unsqueeze(2)
    a, g = a.unsqueeze(1), g.unsqueeze(1)
    if variant == BEFORE:  # the names and arguments that the op had
        return lambda: torch.ops.ahkernels.tangent_statistics([a], [g], [0.0], v, "highest")
    batch = ah.ops.KernelBatch([a], [g], [0.0], [False], [1])
    return lambda: ah.ops.tangent_moments(batch, v, "highest", variant != "global")  # one op gives both


def serve(task: str, n: int, variant: str) -> None:
    """Answers each line on stdin with the seconds that a call took, on average over a round."""
    call = job(task, n, variant)
    call()
    start = time.perf_counter()
    call()
    calls = max(1, int(SECONDS / (time.perf_counter() - start)))
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        print((time.perf_counter() - start) / calls, flush=True)


class Server:
    """A process that runs `serve` in a folder, where it finds `benchmarks` and `ahkernels`."""

    def __init__(self, task: str, n: int, variant: str, folder: Path, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.centering", "--serve", task, str(n), variant],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._answer() != "ready":
            raise RuntimeError(f"{variant}: the process ended before it was ready")

    def _answer(self) -> str:
        return self.process.stdout.readline().strip()

    def seconds(self) -> float:
        print(file=self.process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def folder_of_package(package: Path) -> Iterator[Path]:
    """A folder where `ahkernels` is the package in another folder, and everything else is this repository's."""
    with tempfile.TemporaryDirectory() as folder:
        for name, root in (("ahkernels", package), ("benchmarks", ROOT), ("experiments", ROOT)):
            Path(folder, name).symlink_to((root / name).resolve())
        yield Path(folder)


def measure(
    task: str, n: int, repeats: int, folders: dict[str, Path], threads: int, rate: float
) -> list[dict[str, object]]:
    """A row for each variant, whose process runs in its folder; floors are at `rate` flop/s."""
    servers = {name: Server(task, n, name, folder, threads) for name, folder in folders.items()}
    rounds: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(repeats):
        for name, server in servers.items():
            rounds[name].append(server.seconds())
    for server in servers.values():
        server.close()
    floor, unit = floor_flops(task, n) / rate, rounds["global"]
    print(f"{task}, n = {n} (floor {1e3 * floor:.2f} ms)", flush=True)
    rows = []
    for name, times in rounds.items():
        median, ratio = statistics.median(times), statistics.median(times) / statistics.median(unit)
        print(f"  {name:<11} {1e3 * median:9.3f} ms, least {1e3 * min(times):9.3f}, {ratio:.3f} times global")
        row: dict[str, object] = {"task": task, "n": n, "variant": name, "median_s": median, "min_s": min(times)}
        row |= {"rounds_s": times, "over_global": ratio, "min_over_global": min(times) / min(unit), "floor_s": floor}
        rows.append(row)
    return rows


def floor_flops(task: str, n: int) -> float:
    """Half of each square; for all layers the passes through the network, too, 10 of them backward."""
    square = float(n * OUTPUTS) ** 2 * WIDTH
    if task == "one layer":
        return square
    weights = 784 * WIDTH + (DEPTH - 2) * WIDTH**2 + WIDTH * OUTPUTS
    last = float(n * OUTPUTS) ** 2 * OUTPUTS
    return (DEPTH - 1) * square + last + 2.0 * n * weights * (1 + OUTPUTS)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]), sys.argv[4])
        return
    parser = script.parser("centering", __doc__, quick="at n = 16", repeats=15)
    parser.add_argument("--before", type=Path, help="folder with a built package to compare with")
    args = script.parse(parser)
    if args.before is not None and not (args.before / "ahkernels").is_dir():
        parser.error(f"argument --before: expected a folder that holds a built ahkernels, got '{args.before}'")
    best = script.measure_ceilings(args)
    with ExitStack() as stack:
        folders = dict.fromkeys(VARIANTS, ROOT)
        if args.before is not None:
            folders[BEFORE] = stack.enter_context(folder_of_package(args.before))
        rows = [
            row
            for task in ("one layer", "all layers")
            for n in ((16,) if args.quick else (64, 256, 1000))
            for row in measure(task, n, args.repeats, folders, args.threads, best.rate())
        ]
    script.save(args, best, rows=rows)


if __name__ == "__main__":
    main()
