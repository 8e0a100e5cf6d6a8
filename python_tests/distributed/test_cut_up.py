"""Models whose parameters are cut up over ranks have the numbers of whole ones, and stay cut up as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import ahkernels as ah
from ahkernels.distributed.whole import whole_model
from python_tests.distributed.cases import data, model, shares

COUNTS = [12, 11]


def even() -> nn.Module:
    """A network whose layers two ranks can share evenly."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def cut(network: nn.Module, way: str) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    if way == "tensor parallel":
        return parallelize_module(network, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for child in network.children():
        if any(True for _ in child.parameters()):
            fully_shard(child, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def measured(group: Any, name: str, way: str, whole_x: Any, whole_y: Any, x: Any, y: Any) -> dict[str, Any]:
    """The alignments of a model that is cut up and of a whole one, and what is left of the former."""
    network = even() if name == "even" else model(name, torch.float64)
    wanted = ah.layerwise_alignment(network, whole_x, whole_y, centering="per_output")
    parts = cut(copy.deepcopy(network), way)
    before = [
        (type(one), one.to_local().clone(), one.placements) for one in parts.parameters() if hasattr(one, "to_local")
    ]
    classes, hooks = [type(one) for one in parts.modules()], [len(one._forward_hooks) for one in parts.modules()]
    found = ah.layerwise_alignment(parts, x, y, centering="per_output", process_group=group)
    kernel = ah.tangent_kernels(parts, x, process_group=group)[found.layers[0]]
    after = [(type(one), one.to_local(), one.placements) for one in parts.parameters() if hasattr(one, "to_local")]
    parts(x if way == "fsdp" else whole_x).sum().backward()  # as in training, all ranks together
    return {
        "difference": float((found.cka - wanted.cka).abs().max()),
        "layers": found.layers == wanted.layers,
        "trace": kernel.trace(),
        "unchanged": all(
            a[0] is b[0] and torch.equal(a[1], b[1]) and a[2] == b[2] for a, b in zip(before, after, strict=True)
        ),
        "classes": classes == [type(one) for one in parts.modules()],
        "hooks": hooks == [len(one._forward_hooks) for one in parts.modules()],
        "gradients": all(one.grad is not None for one in parts.parameters()),
        "cut up": len(before) > 0,
    }


@pytest.mark.parametrize(
    ("name", "way"), [("mlp", "fsdp"), ("conv", "fsdp"), ("words", "fsdp"), ("even", "tensor parallel")]
)
def test_cut_up_models_are_measured(ranks, name, way):
    x, y = data("mlp" if name == "even" else name, torch.float64)
    same = [[one] * 2 for one in (name, way, x, y)]
    for one in ranks.all(2, measured, *same, shares(x, COUNTS), shares(y, COUNTS)):
        assert one.pop("difference") < 1e-12
        assert one.pop("trace") > 0
        assert all(one.values()), one


def without_group(group: Any, x: Any, y: Any) -> None:
    ah.layerwise_alignment(cut(model("mlp", torch.float64), "fsdp"), x, y)


def test_without_a_group_the_error_says_what_to_pass(ranks):
    x, y = data("mlp", torch.float64)
    for one in ranks.run(2, without_group, [x, x], [y, y]):
        assert "pass process_group=, whose ranks gather them" in one.args[0]


def test_a_whole_model_is_itself():
    network = model("mlp", torch.float64)
    assert whole_model(network) is network
