"""Claim tested: in mixed precision, alignments are as far from the network in float64 as plain autograd's own are.

Networks with parameters of several dtypes or under autocast. The exact alignments are those of the same network in
float64. Beside ours stands plain torch: the very network, differentiated one sample and one output after the other,
with all sums in float64; so that its distance is the error of the precision itself.
"""

import argparse
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import ours, script, tables

OUTPUTS = 10
COLUMNS = ["network", "n", "precision", "ours", "plain torch", "certificate"]
TEXT = (
    "The largest difference of an alignment from that of the same network in float64, over all layers; and the largest "
    "difference that the certificate found between what was captured and autograd, relative to the size of the addends."
)


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it, each in the dtype of its own parameters."""

    def __init__(self, size: int, rank: int = 4) -> None:
        super().__init__()
        self.base = nn.Linear(size, size)
        self.down, self.up = nn.Linear(size, rank, bias=False), nn.Linear(rank, size, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        added = self.up(self.down(h.to(self.down.weight.dtype)))
        return self.base(h.to(self.base.weight.dtype)) + added.to(self.base.weight.dtype)


class Network(nn.Module):
    """Features of the inputs, a norm, adapted layers, and a head, each in the dtype of its own parameters."""

    def __init__(self, features: nn.Module, size: int) -> None:
        super().__init__()
        self.features, self.norm = features, nn.LayerNorm(size)
        self.layers, self.head = nn.ModuleList([Adapted(size), Adapted(size)]), nn.Linear(size, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x.to(next(self.features.parameters()).dtype) if x.is_floating_point() else x)
        h = self.norm(h.flatten(1).to(self.norm.weight.dtype))
        for layer in self.layers:
            h = functional.gelu(layer(h))
        return self.head(h.to(self.head.weight.dtype))


class Encoder(nn.Module):
    """Words [n, t], self-attention, and the mean over positions."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.words = nn.Embedding(100, size)
        self.block = nn.TransformerEncoderLayer(size, 4, 2 * size, batch_first=True, dropout=0.0)

    def forward(self, words: Tensor) -> Tensor:
        return self.block(self.words(words)).mean(1)


def problems(quick: bool) -> dict[str, tuple[nn.Module, Tensor]]:
    """Networks in float32, and their inputs."""
    torch.manual_seed(0)
    n, size = (4, 16) if quick else (32, 64)
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, size // 4, 3, 2), nn.ReLU())
    perceptron = nn.Sequential(nn.Linear(50, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU())
    return {
        "perceptron": (Network(perceptron, size).eval(), torch.randn(n, 50)),
        "convolutional": (Network(convolutions, size // 4 * 9).eval(), torch.randn(n, 3, 10, 10)),
        "transformer": (Network(Encoder(size), size).eval(), torch.randint(0, 100, (n, 12))),
    }


def of_base(model: Network, dtype: torch.dtype) -> Network:
    """All but the adapters in a dtype."""
    model.to(dtype)
    for layer in model.layers:
        layer.down.float(), layer.up.float()
    return model


def of_backbone(model: Network, dtype: torch.dtype) -> Network:
    """All but the norm and the head in a dtype."""
    model.to(dtype)
    model.norm.float(), model.head.float()
    return model


@dataclass(frozen=True)
class Precision:
    """What is done to a network in float32, and the dtype of the autocast region around a call."""

    change: Callable[[Network], nn.Module] = lambda model: model
    autocast: torch.dtype | None = None

    def region(self) -> AbstractContextManager[object]:
        return nullcontext() if self.autocast is None else torch.autocast("cpu", self.autocast)


PRECISIONS = {
    "fp32": Precision(),
    "autocast to bf16": Precision(autocast=torch.bfloat16),
    "autocast to fp16": Precision(autocast=torch.float16),
    "bf16": Precision(lambda model: model.bfloat16()),
    "fp16": Precision(lambda model: model.half()),
    "bf16 with fp32 adapters": Precision(lambda model: of_base(model, torch.bfloat16)),
    "bf16 with fp32 norm and head": Precision(lambda model: of_backbone(model, torch.bfloat16)),
}


def alignments_of_plain_torch(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """The alignment of each layer, from gradients one sample and one output after the other and sums in float64."""
    own = {
        name: list(module.parameters(recurse=False))
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    rows: dict[str, list[Tensor]] = {name: [] for name in own}
    for index in range(len(x)):
        for value in model(x[index : index + 1])[0]:
            gradients = iter(torch.autograd.grad(value, [p for of in own.values() for p in of], retain_graph=True))
            for name, parameters in own.items():
                rows[name].append(torch.cat([next(gradients).flatten().double() for _ in parameters]))
    labels = functional.one_hot(y, OUTPUTS).double().flatten()
    labels -= labels.mean()
    found = {}
    for name, of_layer in rows.items():
        jacobian = torch.stack(of_layer)
        jacobian -= jacobian.mean(0)
        kernel = jacobian @ jacobian.T
        found[name] = float(labels @ kernel @ labels / (kernel.norm() * labels.square().sum()))
    return found


def measure(name: str, model: nn.Module, x: Tensor) -> list[list[tables.Cell]]:
    """A row for each precision."""
    y = torch.arange(len(x)) % OUTPUTS
    wide = x.double() if x.is_floating_point() else x
    exact = ours.certified_report(copy.deepcopy(model).double(), wide, y)
    rows: list[list[tables.Cell]] = []
    for kind, precision in PRECISIONS.items():
        changed = precision.change(copy.deepcopy(model))
        with precision.region():
            report = ours.certified_report(changed, x, y)
            plain = alignments_of_plain_torch(changed, x, y)
        distances = [max(abs(found[layer] - exact[layer]) for layer in exact) for found in (report, plain)]
        largest = max(report.certificate.differences.values())
        rows.append([name, len(x), kind, *(float(f"{one:.1e}") for one in (*distances, largest))])
    return rows


def main() -> None:
    args: argparse.Namespace = script.parse(
        script.parser("mixed_precision", __doc__, quick="of tiny networks", repeats=1)
    )
    rows = [row for name, problem in problems(args.quick).items() for row in measure(name, *problem)]
    tables.show("Alignments in mixed precision", COLUMNS, rows)
    script.save(args, **tables.record("Alignments in mixed precision", TEXT, COLUMNS, rows))


if __name__ == "__main__":
    main()
