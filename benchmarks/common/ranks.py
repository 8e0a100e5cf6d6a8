"""A benchmark once more as the ranks of a group, each in a process of its own with one thread."""

from __future__ import annotations

import os
import subprocess
import sys


def run_ranks(module: str, ranks: int, *arguments: str) -> None:
    """Runs a module under torchrun, and waits until all ranks have ended.

    Args:
        module: Such as "benchmarks.distributed", which tells by LOCAL_RANK that it is a rank.
        ranks: How many processes take part.
        *arguments: Those of its command line.

    Raises:
        subprocess.CalledProcessError: If a rank fails.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", module]
    subprocess.run([*command, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
