"""The frame of every benchmark of a GPU: options, and the file that its rows go to."""

import argparse

import torch

import ahkernels as ah
from benchmarks.common import device as on_device
from benchmarks.common.arguments import file, positive
from benchmarks.common.script import RESULTS
from benchmarks.gpu.row_file import RowFile


def arguments(name: str, description: str, repeats: int) -> argparse.Namespace:
    """The options; where the device is not there, a sentence ends the process."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu.{name}", description=description.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; its figures mean nothing")
    parser.add_argument("--repeats", type=positive(int), default=repeats)
    parser.add_argument("--output", type=file, default=RESULTS / f"{name}.json")
    parser.set_defaults(name=name)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a CUDA device that torch can use, found none; try --device cpu --quick")
    return args


def row_file(args: argparse.Namespace) -> RowFile:
    """The file of results, begun with the device and the build."""
    machine, build = on_device.describe(args.device), ah.build_info()
    return RowFile(args.output, benchmark=args.name, quick=args.quick, machine=machine, build=build)
