"""What a measurement would do: the rule, the route and the cost of each layer, before any of the work is done.

Several processes explain together, each with its samples, and get the same explanation. What it says follows from what
the ranks tell of their plans (`_Planned`), so that all of them compute the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from ahkernels.capture.batch import Inputs
from ahkernels.capture.explanation import Explanation, LayerExplanation
from ahkernels.capture.options import CaptureOptions
from ahkernels.capture.plan import CapturePlan, PlannedLayer, plan_capture
from ahkernels.capture.sharded import plan_together
from ahkernels.centering import Centering, Centerings, require_centerings
from ahkernels.contraction.order import LayerShape, Order, flops, order_of
from ahkernels.distributed.cost import Shard, ShardExplanation, cheaper, shares
from ahkernels.distributed.group import everywhere, watched
from ahkernels.distributed.traffic import NormOverRanks

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ahkernels.capture.options import CaptureKeywords


def explain(
    model: nn.Module, x: Inputs, *, centering: Centering | Centerings = "global", **options: Unpack[CaptureKeywords]
) -> Explanation:
    """Tells how `layerwise_alignment` would measure each layer, from a run of a twin on a few samples.

    Args:
        model: A network whose samples are independent given its parameters, with f(x) of shape [n, o].
        x: What the model takes for n samples: a tensor, or a tuple, dict or dataclass of tensors [n, ...].
        centering: "global", "per_output" or both, as for the measurement. Orders of contraction depend on it, and what
            several processes send.
        **options: Those of the measurement, such as `layers`, `outputs` and `memory_budget`; see `CaptureOptions`. With
            a `process_group`, all of its ranks call this together, each with its own samples, of which there may be
            none. All get the same explanation: of the measurement of all samples, by exact norms.

    Returns:
        One `LayerExplanation` for each layer, in forward order, and the expected peak of memory. A group of layers
        (`layers={...}`) is explained as if each layer had a kernel of its own.

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
    chosen, centerings = everywhere(
        options.get("process_group"), lambda: (CaptureOptions.of(options), require_centerings(centering))
    )
    if chosen.process_group is None:
        plan = plan_capture(model, x, chosen)
        planned = [_Planned.of(plan, layer) for layer in plan.layers.values()]
        return Explanation((one.alone(len(plan.x), centerings) for one in planned), plan.peak_bytes)
    with watched(chosen.process_group):
        arguments = {"call": "explain", "centering": centerings}
        return explain_together(model, x, chosen, centerings, arguments)


class _Planned(NamedTuple):
    """What has been planned for a layer, as ranks tell it.

    Attributes:
        layer: See `LayerExplanation`, as for all that have its names.
        kind: The type of its module.
        route: The name of the route.
        positions: Positions of all uses together.
        parameters: The number of scalar parameters.
        bytes: The size of what is kept.
        o: Rows of its kernel for each sample.
        shape: The sizes of what is kept, a `LayerShape`.
        item: Bytes of a number of that.
        by_tiles: Flops of its route, with tiles of all of K.
        forming: Flops for each sample until there is something to make tiles from.
        captured: Flops of the model's passes through the layer, for each sample.
    """

    layer: str
    kind: str
    route: str
    positions: int
    parameters: int
    bytes: int
    o: int
    shape: Sequence[Any]
    item: int
    by_tiles: int
    forming: float
    captured: int

    @classmethod
    def of(cls, plan: CapturePlan, layer: PlannedLayer) -> _Planned:
        """A layer of a plan."""
        rows, n, o = plan.outputs.rows, plan.memory.most, 1 if plan.outputs.per_sample else plan.outputs.rows
        if layer.as_jacobian or layer.d == 0:
            shape = LayerShape(1, 0, layer.route.numbers // (n * rows) * rows // o, bias=True)
        else:
            by_jacobian = layer.route.name == "jacobian slices"
            shape = LayerShape(layer.positions, layer.d, layer.m * rows // o, layer.bias, by_jacobian)
        return cls(
            layer.name,
            type(layer.module).__name__,
            "fallback" if layer.rule is None and layer.route.name != "tied" else layer.route.name,
            layer.positions,
            sum(plan.model.get_parameter(name).numel() for name in layer.parameters),
            layer.route.numbers * plan.memory.item,
            o,
            shape,
            plan.memory.item,
            layer.route.flops,
            0.0 if layer.alone else (layer.route.flops - flops(n, o, [shape])["tiles"]) / n,
            2 * layer.positions * max(1, layer.d) * layer.m * (1 + rows),
        )

    def norm(self, counts: Sequence[int], centerings: Sequence[Centering]) -> NormOverRanks:
        """The norm of its kernel over ranks with so many samples each."""
        return NormOverRanks(counts, self.o, LayerShape(*self.shape), self.item, centerings)

    def work(self, norm: NormOverRanks) -> list[float]:
        """The flops of each rank, from what is captured to the norm."""
        forming = self.forming if norm.order == "tiles" else 0.0
        return [forming * count + norm.flops(rank) for rank, count in enumerate(norm.counts)]

    def on_ranks(self, norm: NormOverRanks) -> LayerExplanation:
        """The layer measured by all ranks, each with some of the samples."""
        sent = tuple(norm.traffic(rank).bytes for rank, _ in enumerate(norm.counts))
        return self._explained(norm.order, self.work(norm), sent)

    def alone(self, n: int, centerings: Sequence[Centering], ranks: int = 0) -> LayerExplanation:
        """The layer measured by one process with n samples, which sends nothing to so many ranks."""
        shape, by_output = LayerShape(*self.shape), "per_output" in centerings
        order = order_of(n, self.o, [shape], by_output=by_output)
        counts = flops(n, self.o, [shape], by_output=by_output)
        return self._explained(order, [self.by_tiles if order == "tiles" else counts[order]], (0,) * ranks)

    def _explained(self, order: Order, work: Sequence[float], sent: tuple[int, ...]) -> LayerExplanation:
        of_layer = self.layer, self.kind, self.route, order, self.positions, self.parameters
        return LayerExplanation(*of_layer, round(sum(work)), self.bytes, round(max(work)), sent)


def explain_together(
    model: nn.Module,
    x: Inputs,
    options: CaptureOptions,
    centerings: Sequence[Centering],
    arguments: dict[str, Any],
    *,
    evaluating: bool = False,
) -> Explanation:
    """Explains a measurement on all ranks of a process group; see `explain`.

    Args:
        model: The network, the same on all ranks.
        x: The samples of this rank.
        options: What the user chose, with a process group.
        centerings: The means that are removed.
        arguments: What else must be the same on all ranks, by its name.
        evaluating: Whether the network is measured in eval mode, whatever mode it is in.
    """
    plan = plan_together(model, x, options, arguments, evaluating=evaluating)
    counts, n = plan.counts, sum(plan.counts)
    _, told = plan.group.collect(
        lambda: (None, None if plan.own is None else _told(plan.own, n, options.memory_budget))
    )
    of_ranks = [one for one in told if one is not None]
    in_parts, whole = _planned_alike(of_ranks, "samples"), _planned_alike(of_ranks, "layers")
    norms = [one.norm(counts, centerings) for one in in_parts]
    alone = {one.layer: one.alone(n, centerings, len(counts)) for one in whole}
    shards: dict[Shard, ShardExplanation] = {"samples": _of_samples(in_parts, norms, counts)}
    if all(counts) and all(one["x"] == of_ranks[0]["x"] for one in of_ranks):
        shards["layers"] = _of_layers(whole, alone, of_ranks[0], counts)
    elif options.shard == "layers":
        raise ValueError(
            'shard: expected "samples" where a rank has no sample or samples of another shape, got "layers" with '
            f"{counts} samples"
        )
    shard = cheaper(shards) if options.shard == "auto" else options.shard
    if shard == "layers":
        return Explanation(alone.values(), max(one["peaks"]["layers"] for one in of_ranks), shard, shards)
    held = [max(norm.held(rank) for norm in norms) for rank, _ in enumerate(counts)]
    peaks = [of_rank + (0 if one is None else one["kept"]) for one, of_rank in zip(told, held, strict=True)]
    peak = max(*peaks, *(one["peaks"]["samples"] for one in of_ranks))
    explained = [one.on_ranks(norm) for one, norm in zip(in_parts, norms, strict=True)]
    return Explanation(explained, peak, shard, shards)


def _planned_alike(told: Sequence[dict[str, Any]], shard: Shard) -> list[_Planned]:
    """The layers as ranks measure them together, with the most positions that one has on any rank."""
    of_layers = zip(*(one[shard] for one in told), strict=True)
    return [max((_Planned(*one) for one in of_layer), key=lambda one: one.positions) for of_layer in of_layers]


def _of_samples(planned: Sequence[_Planned], norms: Sequence[NormOverRanks], counts: Sequence[int]) -> ShardExplanation:
    """What it takes to share out the samples."""
    captured = sum(one.captured for one in planned)
    work = [one.work(norm) for one, norm in zip(planned, norms, strict=True)]
    traffic = [[norm.traffic(rank) for norm in norms] for rank, _ in enumerate(counts)]
    return ShardExplanation.of(
        "samples",
        len(planned),
        captured=counts,
        flops=[captured * count + sum(of_layer[rank] for of_layer in work) for rank, count in enumerate(counts)],
        sent=[sum(one.bytes for one in of_rank) for of_rank in traffic],
        collectives=max(sum(one.collectives for one in of_rank) for of_rank in traffic),
    )


def _of_layers(
    planned: Sequence[_Planned],
    alone: dict[str, LayerExplanation],
    told: dict[str, Any],
    counts: Sequence[int],
) -> ShardExplanation:
    """What it takes to share out the layers, once all ranks have all samples."""
    n, ranks = sum(counts), len(counts)
    captured = n * sum(one.captured for one in planned)
    of_shares = [
        sum(alone[one].flops for name in share for one in told["groups"][name])
        for share in shares(told["costs"], ranks)
    ]
    return ShardExplanation.of(
        "layers",
        len(planned),
        captured=[n] * ranks,
        flops=[captured + of_share for of_share in of_shares],
        sent=[max(counts) * told["bytes of a sample"]] * ranks,
        collectives=len(told["x"]) + 1,  # with labels
    )


def _told(plan: CapturePlan, n: int, budget: int) -> dict[str, Any]:
    """What a rank tells of its plan, and of one for all n samples with all of the memory budget."""
    memory = replace(plan.memory, budget=budget, n=n, most=n)
    layers = {
        one.name: PlannedLayer.of(one, plan.model, plan.outputs, memory, keep_factors=False)
        for one in plan.trace.layers
    }
    whole = replace(plan, memory=memory, layers=layers)
    of_sample = sum(one.nbytes for one in plan.x.tensors) // len(plan.x)
    return {
        "samples": [_Planned.of(plan, one) for one in plan.layers.values()],
        "layers": [_Planned.of(whole, one) for one in whole.layers.values()],
        "groups": plan.groups,
        "costs": whole.costs,
        "peaks": {"samples": plan.peak_bytes, "layers": whole.peak_bytes + n * of_sample},
        "kept": plan.kept_bytes,
        "x": plan.x.kinds,
        "bytes of a sample": of_sample,
    }
