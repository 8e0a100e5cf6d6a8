"""Measures the layerwise alignment of a model, or of each of its checkpoints.

Writes history.json, history.csv and history.png to a folder. A command that was stopped goes on where it was when it is
started again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ahkernels.checkpoints import measure_checkpoints
from ahkernels.command_line.data_file import read_data
from ahkernels.command_line.model_factory import model_factory
from ahkernels.command_line.plot import save_figure
from ahkernels.optional_import import optional_import
from ahkernels.statistics import STATISTICS
from ahkernels.statistics.layer_statistics import ALWAYS
from ahkernels.tracker import AlignmentTracker

_ON_REQUEST = [name for name in STATISTICS if name not in (*ALWAYS, "cka_standard_error")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, its checkpoints, the data, and what to measure."""
    parser.add_argument("model", metavar="MODEL", help="module:function, whose function makes the model")
    parser.add_argument("--checkpoints", nargs="+", help="files with its weights; by default those it is made with")
    parser.add_argument("--data", required=True, help=".npz or .safetensors with y, and x or several inputs by name")
    parser.add_argument("--output", required=True, type=Path, help="the folder for the files; it is made if need be")
    parser.add_argument("--steps", type=int, nargs="+", help="of the checkpoints; by default from their names")
    parser.add_argument("--centering", nargs="+", default=["global"], help='"global", "per_output" or both')
    parser.add_argument("--statistics", nargs="+", default=[], help=f"beside the alignment: {', '.join(_ON_REQUEST)}")
    parser.add_argument("--layers", nargs="+", help="names or patterns, such as 'fc*'; by default all")
    parser.add_argument("--outputs", nargs="+", default=["all"], help='"all", "trace", "sum", or numbers of outputs')
    parser.add_argument("--precision", help='"highest", "high" or "medium"')
    parser.add_argument("--products", type=int, help="estimate norms from so many products")
    parser.add_argument("--tolerance", type=float, help="estimate norms to this relative standard error")
    parser.add_argument("--memory-budget", type=float, metavar="GIB", help="beyond the model and the data; default 2")
    parser.add_argument("--device", default="cpu", help='such as "cuda"')
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> None:
    """Measures, writes the files, and prints the last report."""
    optional_import("matplotlib", "the figure", 'pip install "ahkernels[plot]"')  # before any work is done
    make = model_factory(arguments.model)
    device = _device(arguments.device)
    model = make().to(device)
    dtype = next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
    x, y = read_data(arguments.data, dtype, device)
    options = _options(arguments)
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = f"got {str(arguments.output)!r} ({error.strerror})"
        raise ValueError(f"--output: expected a folder, or a name that one can be made with, {got}") from error
    files = {ending: arguments.output / f"history.{ending}" for ending in ("json", "csv", "png")}
    if arguments.checkpoints:
        history = measure_checkpoints(
            *(lambda: model, arguments.checkpoints, x, y),
            steps=arguments.steps,
            history=files["json"],
            progress=not arguments.quiet,
            **options,
        )
    elif files["json"].exists():
        raise ValueError(f"--output: expected a folder without a history, got {str(arguments.output)!r}; name another")
    else:
        tracker = AlignmentTracker(model, x, y, **options)
        tracker.update(0)
        tracker.save(files["json"])  # with what it was measured with
        history = tracker.history
    history.save(files["csv"])
    save_figure(history.plot()[0], files["png"])
    for report in history[-1].reports.values():
        print(report)
    print("\n".join(str(one) for one in files.values()))


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keywords of a measurement."""
    options = {
        "centering": arguments.centering,
        "statistics": arguments.statistics,
        "outputs": _outputs(arguments.outputs),
        "layers": arguments.layers,
        "precision": arguments.precision,
        "products": arguments.products,
        "tolerance": arguments.tolerance,
    }
    if arguments.memory_budget is not None:
        options["memory_budget"] = int(arguments.memory_budget * 2**30)
    return options


def _outputs(words: list[str]) -> Any:
    if all(word.isdecimal() for word in words):
        return int(words[0]) if len(words) == 1 else list(map(int, words))
    return words[0] if len(words) == 1 else words


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device: expected a device of this machine, got {name!r}: {reason}") from error
    return device
