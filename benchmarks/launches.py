"""Claim tested: a measurement on a device waits for it a few times, however many layers there are.

It also counts how many operations a measurement launches there: for small networks that is most of its time. No device
is needed (common/pretended_device.py). An operation of torch counts once, though some take several kernels; views and
allocations are none.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from typing import Any

import torch
from torch import nn

import ahkernels as ah
from benchmarks.common import arguments, json_file, script, tables
from benchmarks.common.pretended_device import PretendedDevice, devices_of_updates

DEPTH, LESS = 10, 3
SAMPLES, INPUTS, WIDTH, OUTPUTS = 20, 10, 64, 5
CASES: dict[str, dict[str, Any]] = {
    "global": {},
    "per_output": {"centering": "per_output"},
    "both centerings": {"centering": ("global", "per_output")},
    'outputs="trace"': {"outputs": "trace"},
    "products=30": {"products": 30},
}
COLUMNS = ["call", "measured", "waits", "of them for each layer", "launches", "of them for each layer"]
TEXT = (
    "An MLP of depth {DEPTH}, and what each layer adds between depth {LESS} and {DEPTH}. The first call is checked "
    "against autograd; a later call is one of a tracker that is not."
)


def mlp(depth: int) -> nn.Sequential:
    """A network with so many linear layers."""
    sizes = [INPUTS, *[WIDTH] * (depth - 1), OUTPUTS]
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))[:-1]


def counted(depth: int, options: dict[str, Any]) -> list[PretendedDevice]:
    """The device of a first measurement and of a later one."""
    torch.manual_seed(0)
    model, x, y = mlp(depth), torch.randn(SAMPLES, INPUTS), torch.arange(SAMPLES) % OUTPUTS
    tracker = ah.AlignmentTracker(model, x, y, **options)
    return devices_of_updates(tracker)


def by_file(launches: Counter[str]) -> dict[str, int]:
    """Launches by the file of the package that they come from, the most first."""
    found: Counter[str] = Counter()
    for where, count in launches.items():
        found[where.partition(":")[0]] += count
    return dict(found.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run of one case, which writes nothing")
    parser.add_argument("--output", type=arguments.file, help="JSON file (default: benchmarks/results/launches.json)")
    args = parser.parse_args()
    rows: list[list[tables.Cell]] = []
    files = {}
    for name, options in list(CASES.items())[: 1 if args.quick else None]:
        devices = zip(("first", "later"), counted(DEPTH, options), counted(LESS, options), strict=True)
        for call, device, of_less in devices:
            row: list[tables.Cell] = [call, name]
            for counts, less in ((device.waits, of_less.waits), (device.launches, of_less.launches)):
                row += [counts.total(), round((counts.total() - less.total()) / (DEPTH - LESS), 1)]
            rows.append(row)
            files[f"{call} {name}"] = by_file(device.launches)
    title = "What the host does for a measurement on a device"
    tables.show(title, COLUMNS, rows)
    output = args.output or (None if args.quick else script.RESULTS / "launches.json")
    if output is not None:
        text = TEXT.format(DEPTH=DEPTH, LESS=LESS)
        head = {"benchmark": "launches", "torch": torch.__version__}
        json_file.write(output, head | tables.record(title, text, COLUMNS, rows) | {"launches_by_file": files})


if __name__ == "__main__":
    main()
