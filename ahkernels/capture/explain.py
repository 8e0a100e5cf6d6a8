"""What a measurement would do: for each layer its rule, its route and its cost, before any of it is done."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ahkernels.capture.kernels import plan_capture
from ahkernels.capture.run import DEFAULT_MEMORY_BUDGET, PlannedLayer
from ahkernels.capture.selection import Layers
from ahkernels.outputs import Outputs


@dataclass(frozen=True)
class LayerExplanation:
    """How one layer would be measured.

    Attributes:
        layer: Its name.
        kind: The type of its module.
        route: "factors" (one position), "pairs" (of positions), "jacobian" (kept instead of the factors), "jacobian
            slices" (of kept factors), or "fallback" (the Jacobian from the model itself, where there is no rule).
        positions: s, over all of its uses.
        parameters: Numbers in them.
        flops: From what is captured to the kernel on and below its diagonal, two for each multiply-add.
        bytes: Held of the layer.
    """

    layer: str
    kind: str
    route: str
    positions: int
    parameters: int
    flops: int
    bytes: int


class Explanation(list[LayerExplanation]):
    """One entry for each layer in forward order; prints as a table."""

    def __str__(self) -> str:
        """The table, with the sum of flops and the largest number of bytes in the last line."""
        rows = [("layer", "kind", "route", "positions", "parameters", "Gflop", "MiB")]
        rows += [
            (
                one.layer,
                one.kind,
                one.route,
                str(one.positions),
                f"{one.parameters:,}",
                f"{one.flops / 1e9:.3f}",
                f"{one.bytes / 2**20:.1f}",
            )
            for one in self
        ]
        flops, largest = sum(one.flops for one in self), max(one.bytes for one in self)
        rows.append(("", "", "", "", "", f"{flops / 1e9:.3f}", f"{largest / 2**20:.1f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                text.ljust(width) if i < 3 else text.rjust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )

    __repr__ = __str__


def explain(
    model: nn.Module,
    x: Tensor,
    *,
    layers: Layers = None,
    outputs: Outputs = "all",
    memory_budget: int | None = DEFAULT_MEMORY_BUDGET,
) -> Explanation:
    """How `layerwise_alignment` would measure each layer, from a run of the model on one sample.

    Arguments and errors as `layerwise_alignment`.
    """
    plan = plan_capture(
        model,
        x,
        layers=layers,
        outputs=outputs,
        precision=None,
        memory_budget=memory_budget,
        keep_factors=False,
        progress=False,
    )
    return Explanation(_explain(model, layer) for layer in plan.layers)


def _explain(model: nn.Module, planned: PlannedLayer) -> LayerExplanation:
    traced, route = planned.traced, planned.route
    return LayerExplanation(
        planned.name,
        type(traced.layer.module).__name__,
        "fallback" if traced.layer.rule is None else route.name,
        traced.positions,
        sum(model.get_parameter(name).numel() for name in traced.layer.parameters),
        route.flops,
        route.numbers * next(model.parameters()).dtype.itemsize,
    )
