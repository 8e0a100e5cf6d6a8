"""What a measurement would do: the rule, the route and the cost of each layer, before any of the work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from ahkernels.capture.batch import Inputs
from ahkernels.capture.options import CaptureOptions
from ahkernels.capture.plan import CapturePlan, PlannedLayer, plan_capture
from ahkernels.contraction.order import LayerShape, Order, flops, order_of
from ahkernels.table import Column, text_table

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ahkernels.capture.options import CaptureKeywords


@dataclass(frozen=True)
class LayerExplanation:
    """How one layer would be measured.

    Attributes:
        layer: The name of the layer.
        kind: The type of its module.
        route: "factors" for a layer with one position. For several positions: "pairs" (by pairs of positions),
            "jacobian" (the Jacobian is kept instead of the factors) or "jacobian slices" (the factors are kept, and the
            Jacobian is formed from them a slice at a time). "root" where none of these fits the memory budget, so that
            the layer comes in blocks of samples, and a square root of K is kept. "tied" for a table that is an
            embedding and the weight of a linear layer, of which a square root of K is kept, too. "fallback" where no
            rule holds, so that the Jacobian comes from the model itself.
        order: How the squared norm of the kernel is contracted: "tiles" of it, on and below the diagonal; "outputs
            first" or "parameters first" where that costs less (see `ahkernels.contraction`).
        positions: Positions of all uses together.
        parameters: The number of scalar parameters.
        flops: Floating-point operations from what is captured to the squared norm, two for each multiply-add.
        bytes: The size of what is kept of the layer.
    """

    layer: str
    kind: str
    route: str
    order: Order
    positions: int
    parameters: int
    flops: int
    bytes: int


class Explanation(list[LayerExplanation]):
    """One entry for each layer in forward order; prints as a table.

    Args:
        layers: The entries.
        peak_bytes: The expected peak.

    Attributes:
        peak_bytes: What the capture is expected to hold at most at a time, beyond the model and the inputs: what one
            pass keeps of its layers, and a chunk of samples beside that. The workspaces of torch and of the ops are not
            in it; on a CPU they are mostly between 60 and 100 MiB.
    """

    def __init__(self, layers: Iterable[LayerExplanation], peak_bytes: int) -> None:
        super().__init__(layers)
        self.peak_bytes = peak_bytes

    def __str__(self) -> str:
        """The table; below are the sum of the flops and the size of the largest layer, and the expected peak."""
        flops, sizes = [one.flops for one in self], [one.bytes for one in self]
        table = text_table(
            [
                Column("layer", [*(one.layer for one in self), ""], "left"),
                Column("kind", [*(one.kind for one in self), ""], "left"),
                Column("route", [*(one.route for one in self), ""], "left"),
                Column("order", [*(one.order for one in self), ""], "left"),
                Column("positions", [*(str(one.positions) for one in self), ""]),
                Column("parameters", [*(f"{one.parameters:,}" for one in self), ""]),
                Column("Gflop", [f"{number / 1e9:.3f}" for number in [*flops, sum(flops)]]),
                Column("MiB", [f"{number / 2**20:.1f}" for number in [*sizes, max(sizes)]]),
            ]
        )
        return f"{table}\nexpected peak: {self.peak_bytes / 2**20:.0f} MiB beyond model and inputs"

    __repr__ = __str__


def explain(model: nn.Module, x: Inputs, **options: Unpack[CaptureKeywords]) -> Explanation:
    """Tells how `layerwise_alignment` would measure each layer, from a run of a twin on a few samples.

    Args:
        model: A network whose samples are independent given its parameters, with f(x) of shape [n, o].
        x: What the model takes for n samples: a tensor, or a tuple, dict or dataclass of tensors [n, ...].
        **options: Those of the measurement, such as `layers`, `outputs` and `memory_budget`; see `CaptureOptions`.

    Returns:
        One `LayerExplanation` for each layer, in forward order, and the expected peak of memory.

    Raises:
        ValueError: If an argument is out of range or does not fit the model; the message names it.
        TypeError: If an argument has another type; the message names it.

    Example:
        >>> import torch
        >>> import ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(24, 3))
        >>> ah.explain(model, torch.randn(1000, 1, 8))
        layer  kind    route     order  positions  parameters  Gflop  MiB
        0      Conv1d  jacobian  tiles          6          16  0.144  0.2
        2      Linear  factors   tiles          1          75  0.051  0.1
                                                               0.195  0.2
        expected peak: 2 MiB beyond model and inputs
    """
    plan = plan_capture(model, x, CaptureOptions.of(options))
    return Explanation((_explain(plan, layer) for layer in plan.layers.values()), plan.peak_bytes)


def _explain(plan: CapturePlan, layer: PlannedLayer) -> LayerExplanation:
    n, o = len(plan.x), 1 if plan.outputs.per_sample else plan.outputs.rows
    if layer.as_jacobian or layer.d == 0:
        shape = LayerShape(1, 0, layer.route.numbers // (n * plan.outputs.rows) * plan.outputs.rows // o, bias=True)
    else:
        m = layer.m * plan.outputs.rows // o
        shape = LayerShape(layer.positions, layer.d, m, layer.bias, layer.route.name == "jacobian slices")
    order = order_of(n, o, [shape])
    return LayerExplanation(
        layer.name,
        type(layer.module).__name__,
        "fallback" if layer.rule is None and layer.route.name != "tied" else layer.route.name,
        order,
        layer.positions,
        sum(plan.model.get_parameter(name).numel() for name in layer.parameters),
        layer.route.flops if order == "tiles" else round(flops(n, o, [shape])[order]),
        layer.route.numbers * plan.memory.item,
    )
