"""Claim tested: alignments centered per output cost what globally centered ones do, and both together little more.

All layers of an MLP of depth 10 and width 256 (10 outputs) from model and data, and one layer of width 256 from its
factors, for n = 64, 256 and 1000. Each variant is served by a process of its own, and the processes take turns;
`--before` adds global centering by the package of another folder, such as a checkout of an earlier version. Ratios are
of medians; the floor is the flops of half of each square, and of the passes through the network, over the best fp32
GEMM rate of the run.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import arguments, machine, workload
from common.ceilings import measure as measure_ceilings

import ahkernels as ah

VARIANTS = {"global": "global", "per output": "per_output", "both": ("global", "per_output")}
BEFORE = "before"
SECONDS = 0.1  # of a round; shorter calls are repeated within it
OUTPUTS, WIDTH, DEPTH = 10, 256, 10


def job(task: str, n: int, variant: str) -> Callable[[], object]:
    """What is timed; `before` asks for nothing that an earlier version does not have."""
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
    """Answers each line of stdin with the seconds of a call, in the mean over a round."""
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
    """A process of `serve`, of the package that is installed or of that in a folder."""

    def __init__(self, task: str, n: int, variant: str, folder: Path | None, threads: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if folder is not None:
            environment["PYTHONPATH"] = str(folder.resolve())
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", task, str(n), variant],
            env=environment,
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
    parser = arguments.parser(__doc__, "of n = 16", 15)
    parser.add_argument("--before", type=Path, help="folder with a built package to compare with")
    args = parser.parse_args()
    if args.before is not None and not (args.before / "ahkernels").is_dir():
        parser.error(f"argument --before: expected a folder that holds a built ahkernels, got '{args.before}'")
    threads = machine.use_threads(args.threads)
    ceilings = measure_ceilings() if not args.quick else measure_ceilings(square=(256, 256, 256), copied=1 << 20)
    rows = []
    for task in ("one layer", "all layers"):
        for n in (16,) if args.quick else (64, 256, 1000):
            names = [*VARIANTS, *([BEFORE] if args.before else [])]
            servers = {name: Server(task, n, name, args.before if name == BEFORE else None, threads) for name in names}
            rounds: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(args.repeats):
                for name, server in servers.items():
                    rounds[name].append(server.seconds())
            for server in servers.values():
                server.close()
            medians = {name: statistics.median(times) for name, times in rounds.items()}
            floor = floor_flops(task, n) / ceilings.rate()
            print(f"{task}, n = {n} (floor {1e3 * floor:.2f} ms)", flush=True)
            for name, times in rounds.items():
                ratio = medians[name] / medians["global"]
                figures = f"{1e3 * medians[name]:9.3f} ms, least {1e3 * min(times):9.3f}, {ratio:.3f} times global"
                print(f"  {name:<11} {figures}")
                rows.append(
                    {
                        "task": task,
                        "n": n,
                        "variant": name,
                        "median_s": medians[name],
                        "min_s": min(times),
                        "rounds_s": times,
                        "over_global": ratio,
                        "min_over_global": min(times) / min(rounds["global"]),
                        "floor_s": floor,
                    }
                )
    record = {
        "benchmark": "centering",
        "quick": args.quick,
        "machine": machine.describe(),
        "ceilings": ceilings.to_dict(),
        "rows": rows,
    }
    path = args.output or (None if args.quick else Path(__file__).parent / "results" / "centering.json")
    if path is not None:
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
