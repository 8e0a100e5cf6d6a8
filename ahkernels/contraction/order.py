"""The order of contraction that costs least, by counts of flops and the rates of `benchmarks.contraction`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from ahkernels.ops.batch import Layer

Order: TypeAlias = Literal["tiles", "outputs first", "parameters first"]

# Flops of tiles that take as long as a flop of the other orders, but for the forward Gram, at the smallest sizes where
# these pay; and as what is done with each pair of samples once its outputs are contracted.
_FLOP_OF_OUTPUTS, _FLOP_OF_PARAMETERS, _PAIR = 2.0, 1.5, 300
# Other orders are taken where they cost so small a part of what tiles do, and where that is worth their calls.
_GAIN, _LEAST_FLOPS = 0.6, 1e9
# Flops of tiles that take as long as one of a product of the gradients with a few vectors, which memory bounds.
_THIN = 8
# The square matrix over parameters has so many rows at most.
_MOST_PARAMETERS = 4096


class LayerShape(NamedTuple):
    """The sizes of the factors of a layer: s positions, d inputs, m pre-activations and b = 1 for a bias."""

    s: int
    d: int
    m: int
    bias: bool
    by_jacobian: bool = False

    @classmethod
    def of(cls, layer: Layer) -> LayerShape:
        """Those of the factors of a layer."""
        forward, backward, bias, by_jacobian = layer
        return cls(forward.shape[1], forward.shape[2], backward.shape[3], bias > 0, by_jacobian)

    @property
    def parameters(self) -> int:
        """The columns of the Jacobian."""
        return self.m * (self.d + self.bias)


def order_of(n: int, o: int, layers: Sequence[LayerShape], *, by_output: bool = False) -> Order:
    """The order for the squared norm of a kernel, or the inner products of several, with n samples and o outputs.

    Args:
        n: The number of samples.
        o: The number of outputs.
        layers: The layers of the kernels.
        by_output: Whether means by the output of the columns are needed, for centering per output.
    """
    costs = flops(n, o, layers, by_output=by_output)
    tiles = costs.pop("tiles")
    gram = n**2 * sum(one.d for one in layers)
    weighed = {
        order: (count - gram) * _FLOP_OF_OUTPUTS + gram + n**2 * _PAIR
        if order == "outputs first"
        else count * _FLOP_OF_PARAMETERS
        for order, count in costs.items()
    }
    best = min(weighed, key=weighed.__getitem__, default=None)
    return best if best is not None and tiles > _LEAST_FLOPS and weighed[best] < _GAIN * tiles else "tiles"


def flops(
    n: int, o: int, layers: Sequence[LayerShape], *, by_output: bool = False, pairs: int | None = None
) -> dict[Order, float]:
    """Floating-point operations of each order that there is for these layers.

    Args:
        n: See `order_of`, as for all that follow.
        o: The number of outputs.
        layers: The layers.
        by_output: Whether means by the output of the columns are needed.
        pairs: How many of the ordered pairs of samples are taken, of which one in two has to be; None for all n^2.
    """
    rows, pairs = n * o, n**2 if pairs is None else pairs
    found: dict[Order, float] = {}
    found["tiles"] = sum(
        pairs * o**2 * one.parameters if one.by_jacobian else one.s**2 * pairs * (one.d + o**2 * one.m)
        for one in layers
    )
    if o > 1 and all(one.s == 1 for one in layers):
        of_layers = sum(one.m * other.m for one in layers for other in layers)
        found["outputs first"] = of_layers * (pairs / 2 + rows) + pairs * sum(one.d for one in layers)
        if by_output:
            weights = sum(min(n, 2 * (one.d + 1)) * rows * one.m for one in layers)
            found["outputs first"] += 2 * (weights + rows * o * sum(one.m for one in layers))
    parameters = sum(one.parameters for one in layers)
    if o > 1 and parameters <= min(_MOST_PARAMETERS, rows):
        forming = sum(rows * one.s * one.parameters for one in layers)
        found["parameters first"] = 2 * (rows * parameters**2 + 4 * forming)
    return found


def product_cost(n: int, o: int, layers: Sequence[LayerShape]) -> float:
    """What K v takes for one vector, through the weights or through the samples, in flops of tiles."""
    return sum(
        _THIN * 4 * n * o * one.s * one.m + min(4 * n * one.s * one.m * one.d, 2 * (n * one.s) ** 2 * (one.d + one.m))
        for one in layers
    )
