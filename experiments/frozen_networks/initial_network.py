"""The paper's network as initialised, with the weights of one layer in memory at a time: features and tangent kernels.

At width 75,000 the weights of a layer take 22.5 GB and those of ten layers more than a GPU holds, while the activations
of a data set fit. Weights are drawn anew whenever they are needed, always the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import ahkernels as ah
from experiments.common.models import initial_weight
from experiments.common.training import EVALUATION_BATCH


class InitialNetwork:
    """``models.feedforward`` of the same arguments, which has the same weights.

    Args:
        inputs: The dimension d of a sample.
        width: The units N of every hidden layer.
        depth: The number L of linear layers, at least 2.
        outputs: The dimension o of the last layer.
        seed: The seed of the weights.
        device: The device to compute on; weights are drawn on the CPU.
    """

    def __init__(self, inputs: int, width: int, depth: int, outputs: int, seed: int, device: torch.device) -> None:
        self._sizes = list(pairwise([inputs, *[width] * (depth - 1), outputs]))
        self._generator, self._device = torch.Generator().manual_seed(seed), device
        self._states = [self._generator.get_state()]  # before each layer, as far as known

    @property
    def depth(self) -> int:
        """The number L of layers."""
        return len(self._sizes)

    def weight(self, layer: int) -> Tensor:
        """Draw W_l, [N_l, N_(l-1)], for l from 1 to L."""
        while len(self._states) < layer:  # the state before a layer is the one after those below
            self.weight(len(self._states))
        self._generator.set_state(self._states[layer - 1])
        weight = initial_weight(*self._sizes[layer - 1], self._generator)
        if len(self._states) == layer:
            self._states.append(self._generator.get_state())
        return weight.to(self._device)

    @torch.no_grad()
    def features(self, x: Tensor, name: str) -> Tensor:
        """The last layer's inputs relu(z_(L-1)), [n, N], for x: [n, d]; shows a progress bar with this name."""
        hidden = self.depth - 1
        found = x.new_empty(len(x), self._sizes[-1][0])
        with tqdm(total=hidden * len(x), desc=name, unit="image·layer", dynamic_ncols=True, disable=None) as bar:
            for layer in range(1, self.depth):
                weight = self.weight(layer)
                below = x if layer == 1 else found
                for part, to in zip(below.split(EVALUATION_BATCH), found.split(EVALUATION_BATCH), strict=True):
                    to.copy_((part @ weight.T).relu_())
                    bar.update(len(part))
                del weight  # before the next is drawn
        return found

    @torch.no_grad()
    def tangent_kernels(self, x: Tensor, last: nn.Linear, precision: str) -> Iterator[ah.TangentKernel]:
        """Every layer's kernel over x: [n, d], from the last to the first, of a network that ends in ``last``.

        Args:
            x: The samples.
            last: The last layer. If it has a bias, so have all layers: frozen ones are zero.
            precision: See ``ah.tangent_kernels``.
        """
        inputs = [x]  # the inputs of each layer, [n, N_(l-1)]
        for layer in range(1, self.depth):
            inputs.append((inputs[-1] @ self.weight(layer).T).relu_())
        bias = last.bias is not None
        gradient = torch.eye(last.out_features, dtype=x.dtype, device=x.device).expand(len(x), -1, -1)  # [n, o, N_l]
        for layer in range(self.depth, 0, -1):
            factors = ah.LayerFactors(inputs[layer - 1][:, None], gradient[:, None], bias=bias, layer=f"layer{layer}")
            yield ah.TangentKernel(factors, precision=precision)
            del factors
            if layer > 1:
                gradient = gradient @ (last.weight if layer == self.depth else self.weight(layer))
                gradient *= (inputs.pop() > 0)[:, None]
