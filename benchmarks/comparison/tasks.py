"""What the contenders are asked for: data only, with the standard library alone, so that every environment reads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise

QUANTITIES = {
    "layer_kernel": "tangent kernel of one layer",
    "layer_kernels": "tangent kernels of all layers",
    "alignment": "alignment of all layers",
    "network_kernel": "tangent kernel of the whole network",
    "top_eigenvalue": "largest eigenvalue of one layer's tangent kernel",
}
INPUTS = 784  # of the MLP
EIGENVALUE_TOLERANCE = 1e-5  # of a residual, relative to the eigenvalue, for all who iterate


@dataclass(frozen=True)
class Task:
    """A quantity of a network on n samples.

    "mlp" is a ReLU network without biases of `depth` linear layers, 784 inputs and `width` units; "resnet18" is that of
    32 x 32 images, where `width` and `depth` mean nothing.
    """

    quantity: str
    network: str = "mlp"
    n: int = 256
    width: int = 256
    depth: int = 10
    outputs: int = 10
    seed: int = 0
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Short and unique, for progress lines and patterns."""
        shape = "resnet18" if self.network == "resnet18" else f"mlp-width{self.width}-depth{self.depth}"
        return f"{self.quantity}-{shape}-n{self.n}-o{self.outputs}"

    @property
    def layer(self) -> int:
        """Index of the layer that "layer_kernel" and "top_eigenvalue" mean: the middle one."""
        return self.depth // 2

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """[out, in] of the weights of the MLP."""
        sizes = [INPUTS, *[self.width] * (self.depth - 1), self.outputs]
        return [(after, before) for before, after in pairwise(sizes)]

    def on(self, device: str) -> Task:
        return replace(self, device=device)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)
