"""What `explain` returns: how each layer would be measured, and with several processes the work of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ahkernels.contraction.order import Order
from ahkernels.distributed.cost import Shard, ShardExplanation
from ahkernels.table import Column, html_table, text_table


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
        flops: Floating-point operations from what is captured to the squared norm, two for each multiply-add; those of
            all processes together, if there are several.
        bytes: The size of what is kept of the layer, in the process with most samples.
        flops_of_rank: Those of `flops` that the process has that has most to do.
        sent: With a process group, the bytes that each rank gives to the others for the exact norm of the layer's
            kernel. Without one there are none.
    """

    layer: str
    kind: str
    route: str
    order: Order
    positions: int
    parameters: int
    flops: int
    bytes: int
    flops_of_rank: int
    sent: tuple[int, ...] = ()


class Explanation(list[LayerExplanation]):
    """One entry for each layer in forward order; prints as a table.

    Args:
        layers: The entries.
        peak_bytes: The expected peak.
        shard: What is shared out.
        shards: Both ways to share out.

    Attributes:
        peak_bytes: What the capture is expected to hold at most at a time, beyond the model and the inputs: what one
            pass keeps of its layers, and a chunk of samples beside that. The workspaces of torch and of the ops are not
            in it; on a CPU they are mostly between 60 and 100 MiB. With a process group it is the largest of any rank,
            with the factors of other ranks that one holds at a time.
        shard: With a process group, what the entries are for: "samples" or "layers".
        shards: With a process group, the work of its ranks by what they share out, of which `shard="auto"` takes what
            costs less. "layers" is there where that is possible: with a sample on each rank, of one shape on all.
    """

    def __init__(
        self,
        layers: Iterable[LayerExplanation],
        peak_bytes: int,
        shard: Shard | None = None,
        shards: Mapping[Shard, ShardExplanation] | None = None,
    ) -> None:
        super().__init__(layers)
        self.peak_bytes, self.shard, self.shards = peak_bytes, shard, dict(shards or {})

    def __str__(self) -> str:
        """The table; below are the sum of the flops and the size of the largest layer, and the expected peak."""
        shards = [text_table(self._of_shards())] if self.shards else []
        return "\n".join([text_table(self._of_layers()), self._peak(), *shards])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same tables for notebooks."""
        shards = html_table(self._of_shards(), "by what is shared out") if self.shards else ""
        return html_table(self._of_layers(), self._peak()) + shards

    def _peak(self) -> str:
        return f"expected peak: {self.peak_bytes / 2**20:.0f} MiB beyond model and inputs"

    def _of_layers(self) -> list[Column]:
        columns = [
            Column("layer", [*(one.layer for one in self), ""], "left"),
            Column("kind", [*(one.kind for one in self), ""], "left"),
            Column("route", [*(one.route for one in self), ""], "left"),
            Column("order", [*(one.order for one in self), ""], "left"),
            Column("positions", [*(str(one.positions) for one in self), ""]),
            Column("parameters", [*(f"{one.parameters:,}" for one in self), ""]),
            Column("Gflop", _each_and([one.flops for one in self], sum, 1e9, 3)),
            Column("MiB", _each_and([one.bytes for one in self], max, 2**20, 1)),
        ]
        if self.shards:
            columns += [
                Column("Gflop of a rank", [*_each_and([one.flops_of_rank for one in self], sum, 1e9, 3)[:-1], ""]),
                Column("MiB sent", _each_and([max(one.sent) for one in self], sum, 2**20, 1)),
            ]
        return columns

    def _of_shards(self) -> list[Column]:
        shards = self.shards.values()
        return [
            Column("shard", [f"{name}{' (above)' * (name == self.shard)}" for name in self.shards], "left"),
            Column("samples captured", [str(max(one.captured)) for one in shards]),
            Column("Gflop of a rank", [f"{one.flops / 1e9:.3f}" for one in shards]),
            Column("MiB sent", [f"{max(one.sent) / 2**20:.1f}" for one in shards]),
            Column("collectives", [str(one.collectives) for one in shards]),
            Column("cost in s", [f"{one.seconds:.3f}" for one in shards]),
        ]


def _each_and(numbers: Sequence[int], total: Callable[[Sequence[int]], int], unit: float, digits: int) -> list[str]:
    """Each number and the total of all, in a unit."""
    return [f"{number / unit:.{digits}f}" for number in [*numbers, total(numbers)]]
