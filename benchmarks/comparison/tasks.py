"""The tasks of the contenders, as data; the standard library is enough, so that every environment reads them."""

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


@dataclass(frozen=True)
class Sweep:
    """The base task at several values of one of its fields."""

    axis: str
    values: tuple[int, ...]
    base: Task

    @property
    def name(self) -> str:
        return f"sweep-{self.axis}"

    def tasks(self) -> list[Task]:
        return [replace(self.base, **{self.axis: value}) for value in self.values]


SAMPLES = {
    "cpu": {
        "layer_kernel": (64, 256),
        "layer_kernels": (64, 256),
        "alignment": (64, 256, 1000),
        "network_kernel": (64, 256),
        "top_eigenvalue": (64, 256),
    },
    "cuda": {
        "layer_kernel": (256, 1000),
        "layer_kernels": (64, 256, 1000),
        "alignment": (64, 256, 1000, 4000),
        "network_kernel": (64, 256, 1000),
        "top_eigenvalue": (256, 1000),
    },
}
IMAGES = {"cpu": 8, "cuda": 64}
DEPTHS = (2, 10, 200)
OUTPUTS = (1, 10, 100)
WIDTHS = (128, 1024, 8192)
LARGE_N = (64, 256, 1024, 4096, 60000)


def tables(device: str, quick: bool = False) -> list[Task]:
    """The tasks that get a table each."""
    if quick:
        small = [Task(quantity, n=8, width=16, depth=3, outputs=3, device=device) for quantity in QUANTITIES]
        return [*small, Task("alignment", "resnet18", n=2, outputs=2, device=device)]
    found = [Task(quantity, n=n, device=device) for quantity, sizes in SAMPLES[device].items() for n in sizes]
    return [*found, Task("alignment", "resnet18", n=IMAGES[device], device=device)]


def sweeps(device: str, quick: bool = False) -> list[Sweep]:
    """How cost grows: alignments of all layers of a network of depth 3 at n = 64, but for the field that varies."""
    if quick:
        base = Task("alignment", n=8, width=16, depth=3, outputs=2, device=device)
        return [Sweep("n", (8, 16, 32, 64), base), Sweep("outputs", (1, 2, 4), base)]
    base = Task("alignment", n=64, depth=3, device=device)
    return [
        Sweep("n", LARGE_N, base),
        Sweep("width", WIDTHS, base),
        Sweep("depth", DEPTHS, base),
        Sweep("outputs", OUTPUTS, base),
    ]
