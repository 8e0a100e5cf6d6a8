"""Random crops and flips of colour images, which follow from (seed, iteration) alone."""

from __future__ import annotations

from math import isqrt

import numpy as np
import torch
from torch import Tensor

CHANNELS = 3
PADDING = 4  # pixels on each side


class CropsAndFlips:
    """Crops of an image with a black border, each mirrored or not, at random.

    Args:
        x: The training images, flattened, [n, d]; black is the least value of each channel.
        seed: The non-negative seed of crops and flips.
    """

    def __init__(self, x: Tensor, seed: int) -> None:
        self._seed = seed
        self._side = isqrt(x.shape[1] // CHANNELS)
        self._black = x.unflatten(1, (CHANNELS, -1)).amin(dim=(0, 2)).view(CHANNELS, 1, 1)

    def __call__(self, x: Tensor, iteration: int) -> Tensor:
        """The images x: [b, d] of an iteration's minibatch, each with a crop and a flip of its own; [b, d]."""
        # A stream of its own: the seed's other streams order the batches, choose the probe and draw label noise.
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, iteration], spawn_key=(2,)))
        down, right = torch.from_numpy(rng.integers(0, 2 * PADDING + 1, (2, len(x)))).to(x.device)
        mirrored = torch.from_numpy(rng.integers(0, 2, len(x))).bool().to(x.device)
        side, padded_side = self._side, self._side + 2 * PADDING
        padded = self._black.expand(len(x), -1, padded_side, padded_side).clone()
        padded[:, :, PADDING:-PADDING, PADDING:-PADDING] = x.unflatten(1, (CHANNELS, side, side))
        crops = padded.unfold(2, side, 1).unfold(3, side, 1)
        images = crops[torch.arange(len(x), device=x.device), :, down, right]
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images).flatten(1)
