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

from benchmarks.common import device as on_device
from benchmarks.gpu import script
from benchmarks.gpu.cuda_layer import PRODUCTS, Layer

LAUNCH = "AHKERNELS_COUNTED_LAUNCH"  # the precision of the launch that this process is for
# The tensor pipe has had several names; counters that this chip does not know are not asked for.
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
    """The COUNTERS that ncu knows for the chip here; all of them where it does not say."""
    listed = subprocess.run(["ncu", "--query-metrics"], capture_output=True, text=True).stdout.splitlines()
    names = {line.split()[0] for line in listed if line.strip()}
    return [name for name in COUNTERS if name.partition(".")[0] in names] or list(COUNTERS)


def ncu(asked: list[str], precision: str) -> subprocess.CompletedProcess[str]:
    """This module's launch at one precision, counted."""
    command = ["ncu", "--csv", "--clock-control", "none", "--kernel-name", "regex:tiles", "--launch-count", "1", *asked]
    command += [sys.executable, "-m", "benchmarks.gpu.cuda_counters", *sys.argv[1:]]
    return subprocess.run(command, env=os.environ | {LAUNCH: precision}, capture_output=True, text=True)


def read(text: str) -> dict[str, str]:
    """Value and unit by counter, from the table that ncu prints after the output of the program."""
    lines = text.splitlines()
    head = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    table = csv.DictReader(io.StringIO("\n".join(lines[head:])))
    return {
        row["Metric Name"]: f"{row['Metric Value']} {row['Metric Unit']}".strip() for row in table if row["Metric Name"]
    }


def main() -> None:
    args = script.arguments("cuda_counters", __doc__, 1)
    n, width = (100, 16) if args.quick else (2000, 1024)
    if LAUNCH in os.environ:
        Layer(n, width, args.device).fused(os.environ[LAUNCH])
        on_device.synchronize(args.device)
        return
    rows = script.row_file(args)
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
