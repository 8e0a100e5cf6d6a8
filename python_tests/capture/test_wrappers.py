"""Wrappers are looked through, and a process that measures alone does not wait for others."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.multiprocessing
from torch import distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import ahkernels as ah


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
        .double()
        .eval()
    )


X, Y = torch.linspace(-1, 1, 7 * 36, dtype=torch.float64).sin().view(7, 1, 6, 6), torch.arange(7) % 3


class LikePeft(nn.Module):
    """A wrapper with the attributes that PEFT's models have."""

    class Config:
        is_prompt_learning = False

    def __init__(self, model):
        super().__init__()
        self.base, self.active_peft_config = model, self.Config()

    def get_base_model(self):
        return self.base

    def forward(self, *args, **kwargs):
        return self.base(*args, **kwargs)


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        DataParallel,
        AveragedModel,
        lambda model: torch.compile(model, backend="eager"),
        compiled_in_place,
        LikePeft,
        lambda model: torch.compile(DataParallel(AveragedModel(model)), backend="eager"),
    ],
    ids=["DataParallel", "AveragedModel", "compiled", "compiled in place", "PEFT", "several"],
)
def test_wrappers(wrap):
    expected = ah.layerwise_alignment(network(), X, Y)
    model = wrap(network())
    report = ah.layerwise_alignment(model, X, Y, certify=1)
    assert report.layers == expected.layers
    assert torch.allclose(report.cka, expected.cka, rtol=1e-12)
    assert ah.AlignmentTracker(model, X, Y).update(0).report.layers == expected.layers


def test_a_compiled_part():
    model = network()
    expected = ah.layerwise_alignment(copy.deepcopy(model), X, Y).cka
    model[0] = torch.compile(model[0], backend="eager")
    report = ah.layerwise_alignment(model, X, Y, certify=1)
    assert torch.allclose(report.cka, expected, rtol=1e-12)


def _measures_in_a_group(rank: int, file: str, results) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model = DistributedDataParallel(network().train())
    model(X).sum().backward()  # as in training
    found = {}
    if rank == 0:
        found["rank 0"] = ah.AlignmentTracker(model, X, Y).update(0).report.cka.tolist()
    found["all"] = ah.AlignmentTracker(model, X, Y).update(0).report.cka.tolist()
    found["module"] = ah.AlignmentTracker(model.module, X, Y).update(0).report.cka.tolist()
    results.put((rank, found))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=_measures_in_a_group, args=(rank, str(tmp_path / "group"), results)) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    values = [one for of_rank in found.values() for one in of_rank.values()]
    assert len(values) == 5
    assert all(one == values[0] for one in values)


class FullyShardedDataParallel(nn.Module):
    """The name is what the sharded wrapper is known by."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_sharded_parameters(tmp_path):
    with pytest.raises(ValueError, match=r"cut up over processes; .* or write whole\.load_state_dict"):
        ah.tangent_kernels(FullyShardedDataParallel(network()), X)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = fully_shard(network(), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"got '0\.weight' as a \w+, whose parameters are cut up over processes"):
            ah.tangent_kernels(model, X)
    finally:
        distributed.destroy_process_group()
