"""Claim tested: a tile kernel keeps the tensor cores busy, and no level of the memory holds it back.

Hardware counters of one launch of the tile kernel at each precision, read by Nsight Compute (ncu) where it is on the
PATH and allowed to: share of cycles in which the tensor pipe is busy, wavefronts and bank conflicts of shared memory,
throughput of the second-level cache and of memory. Without it, the launches run and the rows say so.
"""

import csv
import io
import os
import shutil
import subprocess
import sys

import torch
from common import device as on_device
from cuda_layer import PRODUCTS, Layer
from gpu_run.row_file import RowFile

import ahkernels as ah

LAUNCH = "AHKERNELS_COUNTED_LAUNCH"  # the precision of the launch that this process is for
# Of the tensor pipe under each name that it has had; those that this chip does not know are not asked for.
COUNTERS = (
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_tensor_op_gmma.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_op_gmma_cycles_active.avg.pct_of_peak_sustained_active",
    "l1tex__data_pipe_lsu_wavefronts.sum",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sectors_op_read.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__bytes_read.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
)
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "WarpStateStats")


def known_counters() -> list[str]:
    """Those of COUNTERS that ncu knows for the chip here; all where it does not say."""
    listed = subprocess.run(["ncu", "--query-metrics"], capture_output=True, text=True).stdout.splitlines()
    names = {line.split()[0] for line in listed if line.strip()}
    return [name for name in COUNTERS if name.partition(".")[0] in names] or list(COUNTERS)


def ncu(asked: list[str], precision: str) -> subprocess.CompletedProcess[str]:
    command = ["ncu", "--csv", "--clock-control", "none", "--kernel-name", "regex:tiles", "--launch-count", "1", *asked]
    return subprocess.run(
        [*command, sys.executable, *sys.argv], env=os.environ | {LAUNCH: precision}, capture_output=True, text=True
    )


def read(text: str) -> dict[str, str]:
    """Counter -> value and unit, from the table that ncu prints after what the program has printed."""
    lines = text.splitlines()
    head = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    table = csv.DictReader(io.StringIO("\n".join(lines[head:])))
    return {
        row["Metric Name"]: f"{row['Metric Value']} {row['Metric Unit']}".strip() for row in table if row["Metric Name"]
    }


def main() -> None:
    args = on_device.arguments(__doc__, "cuda_counters", 1)
    n, width = (100, 16) if args.quick else (2000, 1024)
    if LAUNCH in os.environ:
        Layer(n, width, args.device).fused(os.environ[LAUNCH])
        on_device.synchronize(args.device)
        return
    rows = RowFile(
        args.output,
        benchmark="cuda_counters",
        quick=args.quick,
        machine=on_device.describe(args.device),
        build=ah.build_info(),
        torch=torch.__version__,
    )
    if shutil.which("ncu") is None:
        for precision in PRODUCTS:
            Layer(n, width, args.device).fused(precision)
            rows.add(f"{precision}: ran; no counters: ncu is not on the PATH", precision=precision, counters=None)
        return
    sections = [part for name in SECTIONS for part in ("--section", name)]
    metrics = ["--metrics", ",".join(known_counters())]
    for precision, asked in (("highest", sections), *((precision, metrics) for precision in PRODUCTS)):
        done = ncu(asked, precision)
        counters = read(done.stdout)
        said = "" if counters else (done.stdout + done.stderr)[-1500:]
        rows.add(
            f"{precision}, n = {n}, N = {width}:\n{said}" + "\n".join(f"  {k}: {v}" for k, v in counters.items()),
            precision=precision,
            n=n,
            width=width,
            counters=counters,
            said=said,
        )


if __name__ == "__main__":
    main()
