"""Reports and histories to draw, of networks whose layers are named as in well-known libraries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from ahkernels.history import Measurement
from ahkernels.report import AlignmentReport

NAN = math.nan
Layers = list[tuple[str, str]]  # names and types


def vit(blocks: int = 12) -> Layers:
    """As timm names them."""
    of_block = [
        *(("norm1", "LayerNorm"), ("attn.qkv", "Linear"), ("attn.proj", "Linear")),
        *(("norm2", "LayerNorm"), ("mlp.fc1", "Linear"), ("mlp.fc2", "Linear")),
    ]
    inside = [(f"blocks.{block}.{name}", kind) for block in range(blocks) for name, kind in of_block]
    return [("patch_embed.proj", "Conv2d"), ("(root)", "VisionTransformer"), *inside, *ENDS]


ENDS = [("norm", "LayerNorm"), ("head", "Linear")]


def resnet50() -> Layers:
    """As torchvision names them."""
    found = [("conv1", "Conv2d"), ("bn1", "BatchNorm2d")]
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for layer in (1, 2, 3):
                found += [(f"{name}.conv{layer}", "Conv2d"), (f"{name}.bn{layer}", "BatchNorm2d")]
            if block == 0:
                found += [(f"{name}.downsample.0", "Conv2d"), (f"{name}.downsample.1", "BatchNorm2d")]
    return [*found, ("fc", "Linear")]


def bert(blocks: int = 12) -> Layers:
    """As transformers names them."""
    of_block = [
        *((f"attention.self.{name}", "Linear") for name in ("query", "key", "value")),
        *(("attention.output.dense", "Linear"), ("attention.output.LayerNorm", "LayerNorm")),
        *(("intermediate.dense", "Linear"), ("output.dense", "Linear"), ("output.LayerNorm", "LayerNorm")),
    ]
    inside = [(f"bert.encoder.layer.{block}.{name}", kind) for block in range(blocks) for name, kind in of_block]
    table = [(f"bert.embeddings.{name}_embeddings", "Embedding") for name in ("word", "position")]
    return [*table, ("bert.embeddings.LayerNorm", "LayerNorm"), *inside, ("classifier", "Linear")]


def mlp(depth: int) -> Layers:
    """As nn.Sequential names them, with an activation behind each."""
    return [(str(2 * layer), "Linear") for layer in range(depth)]


NETWORKS = {
    "two layers": mlp(2),
    "names": [(f"fc{layer}", "Linear") for layer in range(1, 21)],
    "long names": [(f"model.encoder.layers.layer_0.attention.part{layer}", "Linear") for layer in range(8)],
    "vit": vit(),
    "vit of 290 layers": vit(48),
    "resnet50": resnet50(),
    "bert": bert(),
    "mlp of 300 layers": mlp(300),
    "blocks of three": [(f"layers.{layer // 3}.part{layer % 3}", "Linear") for layer in range(300)],
}
SOME = {name: NETWORKS[name] for name in ("long names", "vit", "resnet50", "mlp of 300 layers")}


def report(layers: Layers, values: Sequence[float] | None = None, **more: Any) -> AlignmentReport:
    """A report of these layers, whose alignments rise from 0.1 to 0.5 and fall again unless they are given."""
    count = len(layers)
    x = torch.linspace(0, 1, count, dtype=torch.float64)
    cka = 0.1 + 1.6 * x * (1 - x) if values is None else torch.tensor(values, dtype=torch.float64)
    statistics = {"cka": cka, "centered_norm": x, "trace": x, **more}
    return AlignmentReport([name for name, _ in layers], statistics, 16, "all", "highest", kinds=[k for _, k in layers])


def history(layers: Layers, steps: Sequence[int] = (0, 1, 10, 100), metrics: bool = True) -> list[Measurement]:
    """Measurements whose alignments grow from step to step."""
    rows = []
    for row, step in enumerate(steps, 1):
        values = (report(layers).cka * row / len(steps)).tolist()
        losses = {"loss": 2 / row, "accuracy": 0.5, "Val_Loss": 3 / row} if metrics else {}
        rows.append(Measurement(step, losses, {"global": report(layers, values)}))
    return rows


def texts_of_legend(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def x_labels(ax: Axes, *, minor: bool = False) -> list[str]:
    return [label.get_text() for label in ax.get_xticklabels(minor=minor)]


def require_readable(figure: Figure) -> None:
    """Draws the figure; nothing may be outside of it, and no labels of an axis over one another."""
    for _ in range(2):  # a layout with legends beside the axes settles in the second drawing
        figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    whole, found = figure.bbox, figure.get_tightbbox(renderer).transformed(figure.dpi_scale_trans)
    assert whole.x0 - 1 <= found.x0 and found.x1 <= whole.x1 + 1, "nothing is left or right of the figure"
    assert whole.y0 - 1 <= found.y0 and found.y1 <= whole.y1 + 1, "nothing is below or above the figure"
    for ax in figure.axes:
        for axis in filter(Axis.get_visible, (ax.xaxis, ax.yaxis)):
            labels = [one for minor in (False, True) for one in axis.get_ticklabels(minor=minor) if one.get_text()]
            boxes = [one.get_window_extent(renderer) for one in labels if one.get_rotation() == 0 and one.get_visible()]
            overlaps = [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]
            assert not overlaps, [labels[i].get_text() for pair in overlaps for i in pair]
