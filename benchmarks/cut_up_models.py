"""Claim tested: models that FSDP2 has cut up over ranks have the numbers of whole ones, and stay as they are.

An MLP, an encoder of words like BERT's, and ResNet18, cut up by `fully_shard` layer by layer over ranks with gloo, one
thread each. Every rank tells its peak of memory beyond the parts and the inputs it holds, beside the bytes of the whole
model, which it gathers for the time of the call.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ahkernels as ah
from benchmarks.common import memory, script, workload
from benchmarks.common.arguments import positive
from benchmarks.common.ranks import run_ranks

OUTPUTS, WORDS = 10, 8000
TOLERANCE = 1e-4
MIB = 1 << 20


class Encoder(nn.Module):
    """A table of words, six layers of attention, and a head on their mean over positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(width, OUTPUTS)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.encoder(self.table(words)).mean(1))


def workloads(n: int, width: int) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """Each model with n samples and their labels."""
    torch.manual_seed(0)
    images, labels = workload.images(n, outputs=OUTPUTS)
    words = torch.randint(WORDS, (n, 16))
    resnet, pictures, of_pictures = workload.image_network("resnet18", min(n, 8), OUTPUTS)
    return {
        "MLP": (workload.mlp(6, 4 * width, outputs=OUTPUTS), images, labels),
        "encoder": (Encoder(width).eval(), words, labels),
        "ResNet18": (resnet, pictures, of_pictures),
    }


def cut_up(model: nn.Module) -> nn.Module:
    """A copy that is cut up over all ranks: each leaf with parameters, and what is left, is one group of FSDP."""
    parts, mesh = copy.deepcopy(model), init_device_mesh("cpu", (dist.get_world_size(),))
    for module in list(parts.modules()):
        own = any(True for _ in module.parameters(recurse=False))
        if own and not any(True for _ in module.children()) and not isinstance(module, nn.MultiheadAttention):
            fully_shard(module, mesh=mesh)
    return fully_shard(parts, mesh=mesh)


def measure(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """What one rank finds of a model that is cut up, and the largest difference from the whole model."""
    rank, size = dist.get_rank(), dist.get_world_size()
    here = slice(rank * len(x) // size, (rank + 1) * len(x) // size)
    options = {"centering": "per_output", "process_group": dist.group.WORLD}
    parts = cut_up(model)
    before = [one.to_local().clone() for one in parts.parameters()]
    ah.layerwise_alignment(parts, x[here][:1], y[here][:1], **options)  # threads and connections start here
    held = memory.reset_high_water_mark()
    found = ah.layerwise_alignment(parts, x[here], y[here], **options)
    peak = memory.high_water_mark() - held
    unchanged = all(torch.equal(one.to_local(), other) for one, other in zip(parts.parameters(), before, strict=True))
    held = memory.reset_high_water_mark()
    wanted = ah.layerwise_alignment(model, x[here], y[here], **options)
    of_whole = memory.high_water_mark() - held
    return {
        "layers": len(found.layers),
        "difference": float((found.cka - wanted.cka).abs().max()),
        "unchanged": unchanged,
        "peak": peak,
        "peak_of_whole": of_whole,
        "parameters": sum(one.nbytes for one in model.parameters()),
        "part": sum(one.nbytes for one in before),
    }


def as_rank(args: argparse.Namespace) -> None:
    """One rank of those that torchrun has started; rank 0 writes what all have found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name, (model, x, y) in workloads(args.samples, args.width).items():
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, measure(model, x, y))
        if dist.get_rank() == 0:
            (args.raw / f"{name}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    parser = script.parser("cut_up_models", __doc__, quick="on few samples", repeats=1)
    parser.add_argument("--samples", type=positive(int), default=64, help="n, of all ranks together; 8 of ResNet18")
    parser.add_argument("--width", type=positive(int), default=256, help="of the encoder; the MLP is 4 times as wide")
    parser.add_argument("--ranks", type=positive(int), default=2)
    parser.add_argument("--raw", type=Path, help=argparse.SUPPRESS)
    if "LOCAL_RANK" in os.environ:
        as_rank(parser.parse_args())
        return
    args = script.parse(parser)
    if args.quick:
        args.samples, args.width = 8, 16
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["--samples", str(args.samples), "--width", str(args.width)]
        run_ranks("benchmarks.cut_up_models", args.ranks, "--raw", folder, *sizes)
        for path in sorted(Path(folder).iterdir()):
            tables[path.stem] = json.loads(path.read_text())
    for name, of_ranks in tables.items():
        print(f"\n{name}: {of_ranks[0]['layers']} layers, parameters of {of_ranks[0]['parameters'] / MIB:.1f} MiB")
        for rank, one in enumerate(of_ranks):
            print(
                f"  rank {rank} has {one['part'] / MIB:.1f} MiB of them: peak {one['peak'] / MIB:.0f} MiB beyond, "
                f"{one['peak_of_whole'] / MIB:.0f} MiB beyond a whole model; difference {one['difference']:.1e}"
            )
            if not (one["difference"] < TOLERANCE and one["unchanged"]):
                raise AssertionError(f"{name}: rank {rank} differs from the whole model, or its part has changed")
    script.save(args, samples=args.samples, width=args.width, models=tables)


if __name__ == "__main__":
    main()
