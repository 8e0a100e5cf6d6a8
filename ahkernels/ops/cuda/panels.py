"""How many samples of K and of its forward Grams are taken at a time, and what one pass over tiles can take."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ahkernels.ops import plain
from ahkernels.ops.batch import Layer
from ahkernels.ops.cuda.forward_gram import gram_dtype
from ahkernels.ops.cuda.scaled_kernel import PARTS
from ahkernels.ops.cuda.tiles import MOST_LAYERS, PANEL_SAMPLES

# For a panel of the forward Gram, and for rows of K where two kernels are compared.
PANEL_BYTES = 256 << 20
# A sum of layers has its tiles made in one pass if its layers are not more than MOST_LAYERS, its Jacobians have no more
# bytes in float32 and parts, and its forward Grams no more for a panel.
JACOBIAN_BYTES = 512 << 20
GRAM_BYTES = 1 << 30


def fit_one_pass(layers: Sequence[Layer], precision: str) -> bool:
    """Whether the tiles of a kernel can be made in one pass."""
    if len(layers) == 1 and not layers[0].by_jacobian:
        return True
    terms, numbers, gram_bytes = 0, 0, 0
    for layer in layers:
        (n, _, o, m), d = layer.backward.shape, layer.forward.shape[2]
        of_layer = -(-m // plain.jacobian_step(layer.forward, layer.backward)) + 1 if layer.by_jacobian else 1
        terms += of_layer
        gram_bytes += of_layer * least_panel_bytes(layer)
        numbers += n * o * m * (d + 1) if layer.by_jacobian else 0
    jacobian_bytes = (4 + 2 * PARTS[precision]) * numbers
    return terms <= MOST_LAYERS and jacobian_bytes <= JACOBIAN_BYTES and gram_bytes <= GRAM_BYTES


def groups_of(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers that are contracted by pairs of positions, in groups that one pass can take."""
    groups: list[list[Layer]] = []
    room = 0
    for layer in layers:
        if layer.by_jacobian:
            continue
        needed = least_panel_bytes(layer)
        if not groups or needed > room or len(groups[-1]) == MOST_LAYERS:
            groups.append([])
            room = GRAM_BYTES
        groups[-1].append(layer)
        room -= needed
    return groups


def least_panel_bytes(layer: Layer) -> int:
    """Bytes of the forward Gram for a panel of as few samples as can be."""
    return 4 * PANEL_SAMPLES * len(layer.forward) * (1 if layer.by_jacobian else layer.forward.shape[1] ** 2)


def gram_bytes_of(layers: Sequence[Layer], precision: str) -> int:
    """Bytes of the forward Grams at all pairs of positions, for one sample of their rows.

    They are held twice where the tiles do not take the products as they are: in another dtype or order, or as those of
    one of several layers.
    """
    numbers = [len(layer.forward) * (1 if layer.by_jacobian else layer.forward.shape[1] ** 2) for layer in layers]
    dtypes = [gram_dtype(layer, precision) for layer in layers]
    if len(layers) > 1:
        return 8 * sum(numbers) + max(count * dtype.itemsize for count, dtype in zip(numbers, dtypes, strict=True))
    as_it_is = dtypes[0] == torch.float32 and numbers[0] == len(layers[0].forward)
    return (dtypes[0].itemsize + (0 if as_it_is else 4)) * numbers[0]


def panels_within(n: int, bytes_per_sample: int) -> list[slice]:
    """Samples in steps of whole PANEL_SAMPLES within PANEL_BYTES."""
    step = max(1, PANEL_BYTES // bytes_per_sample // PANEL_SAMPLES) * PANEL_SAMPLES
    return [slice(begin, min(begin + step, n)) for begin in range(0, n, step)]


def panels(layers: Sequence[Layer], precision: str) -> list[slice]:
    """Panels of samples whose forward Grams fit."""
    return panels_within(layers[0].backward.shape[0], gram_bytes_of(layers, precision))
