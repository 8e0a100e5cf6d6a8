"""Alignments with the layers shared out over the ranks of a process group, instead of the samples.

All ranks get all samples, which are few, and each measures some of the layers as it would alone. The numbers are then
exchanged. Nothing else is sent, and no rank waits for another meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ahkernels.capture.batch import Batch, Inputs
from ahkernels.capture.plan import CapturePlan, plan_capture
from ahkernels.capture.sharded import require_alike, told_of_call, told_of_numbers
from ahkernels.capture.wrappers import without_wrappers
from ahkernels.centering import Centering
from ahkernels.certificate import Certificate
from ahkernels.distributed.cost import shares
from ahkernels.distributed.group import Group
from ahkernels.distributed.whole import whole_model
from ahkernels.outputs import require_labels
from ahkernels.report import AlignmentReport

if TYPE_CHECKING:
    from ahkernels.layerwise import AlignmentOptions

_Reports = dict[Centering, AlignmentReport]


def reports_by_layers(
    model: nn.Module,
    x: Inputs,
    y: Tensor,
    options: AlignmentOptions,
    measure: Callable[[nn.Module, Inputs, Tensor, AlignmentOptions], _Reports],
    *,
    evaluating: bool,
) -> _Reports:
    """The reports of all layers, each of which one rank has measured.

    Args:
        model: The network, the same on all ranks.
        x: The samples of this rank.
        y: Their labels.
        options: What to measure, with a process group.
        measure: Measures layers in this process alone.
        evaluating: Whether to measure the network in eval mode, whatever mode it is in.

    Raises:
        ValueError: On all ranks, if ranks differ in what they measure; the message names the argument.
        RankError: If another rank has raised an error.
    """
    group = Group.of(options.capture.process_group)
    model = group.everywhere(lambda: without_wrappers(model))
    batch, told = group.collect(lambda: _checked(x, y, options))
    require_alike(told, range(group.size))
    counts = [one["samples"] for one in told]
    model = whole_model(model)
    all_x = batch.with_tensors([torch.cat(group.gather(one, counts)) for one in batch.tensors]).structure
    all_y = torch.cat(group.gather(y, counts))
    progress = options.capture.progress and group.rank == 0
    own = replace(options.capture, process_group=None, shard="samples", progress=progress)
    plan, numbers = group.collect(
        lambda: (plan_capture(model, all_x, own, evaluating=evaluating), {"same": {"model": told_of_numbers(model)}})
    )
    require_alike(numbers, range(group.size))
    mine = {name: plan.groups[name] for name in shares(plan.costs, group.size)[group.rank]}

    def measured() -> tuple[None, dict[str, Any]]:
        chosen = replace(options, capture=replace(own, layers=mine))
        return None, _told(measure(model, all_x, all_y, chosen) if mine else {})

    _, of_ranks = group.collect(measured)
    return {
        one: _merged(plan, sum(counts), one, [ranks[one] for ranks in of_ranks if ranks]) for one in options.centerings
    }


def _checked(x: Inputs, y: Tensor, options: AlignmentOptions) -> tuple[Batch, dict[str, Any]]:
    """The samples of this rank, and what it tells of them and of its call."""
    batch = Batch(x)
    require_labels(y)
    if y.dim() == 0 or len(y) != len(batch):
        raise ValueError(f"y: expected {len(batch)} labels, one for each sample of x, got shape {list(y.shape)}")
    _, told = told_of_call(x, options.capture, options.arguments)
    told["same"] |= {
        "x": batch.kinds,
        "y": f"labels [n, *{list(y.shape[1:])}] in {y.dtype}",
    }
    return batch, told


def _told(reports: _Reports) -> dict[str, Any]:
    """The numbers of reports, as JSON carries them: by centering, statistic and layer."""
    return {
        centering: {
            "statistics": {
                name: dict(zip(report.layers, values.tolist(), strict=True))
                for name, values in report.statistics.items()
            },
            "certificate": None if report.certificate is None else report.certificate.to_dict(),
        }
        for centering, report in reports.items()
    }


def _merged(plan: CapturePlan, n: int, centering: Centering, told: list[Mapping[str, Any]]) -> AlignmentReport:
    """One report with all layers in forward order, from the numbers of the ranks."""
    statistics = {}
    for name in told[0]["statistics"]:
        values = {layer: value for one in told for layer, value in one["statistics"][name].items()}
        statistics[name] = torch.tensor([values[layer] for layer in plan.groups], dtype=torch.float64)
    certificates = [Certificate.from_dict(one["certificate"]) for one in told if one["certificate"] is not None]
    differences = {layer: value for one in certificates for layer, value in one.differences.items()}
    calls_ago = max((one.calls_ago for one in certificates), default=0)
    return AlignmentReport(
        layers=list(plan.groups),
        statistics=statistics,
        n=n,
        outputs=plan.outputs.plain_spec,
        centering=centering,
        precision=plan.precision,
        certificate=Certificate(differences, calls_ago) if certificates else None,
        kinds=plan.kinds,
    )
