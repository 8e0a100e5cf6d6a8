"""The table of accuracies and alignments by layer."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.common.store import Row
from experiments.kernel_machine.figure import NETWORK


def print_table(rows: Sequence[Row]) -> None:
    """Print the accuracies of the machines and the alignments by layer."""
    names = [name.removeprefix("machine_accuracy/") for name in rows[0] if name.startswith("machine_accuracy/")]
    width = max(map(len, names))
    print("test accuracy of kernel regression, and alignment of the kernel with the labels:")
    print(f"  {'kernel':<{width}}  {'at start':>9}  {'at end':>9}  {'CKA, start':>10}  {'CKA, end':>10}")
    for name in names:
        accuracies = [f"{row[f'machine_accuracy/{name}']:>9.1%}" for row in (rows[0], rows[-1])]
        aligned = [f"{row[f'cka/{name}']:>10.4f}" if name != NETWORK else "" for row in (rows[0], rows[-1])]
        print("  ".join([f"  {name:<{width}}", *accuracies, *aligned]).rstrip())
    last = rows[-1]
    print(
        f"the trained network itself: test accuracy {last['test_accuracy']:.1%} (all test images), "
        f"train accuracy {last['train_accuracy']:.1%}"
    )
