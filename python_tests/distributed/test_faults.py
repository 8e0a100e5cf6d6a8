"""A rank that dies or lags ends the calls of the others, which name it and leave their models as they were."""

from __future__ import annotations

import os
import signal
import time
import weakref

import torch
import torch.distributed as dist

import ahkernels as ah
from ahkernels import layerwise
from ahkernels.distributed import group as group_of_ranks
from python_tests.distributed.cases import data, model, shares
from python_tests.distributed.ranks import ranks_of, start

COUNTS = [9, 14]
SECONDS = 2  # that a collective may take


def measured(group, x, y, fault):
    """While rank 1 dies or lags in the middle, what another finds: an error, after how long, and an unchanged model."""
    network = model("mlp", torch.float64)
    before = {name: one.clone() for name, one in network.state_dict().items()}
    group_of_ranks._ANSWER = 1.0  # seconds for the ranks that are left
    if group.rank() == 1:
        moments = layerwise.label_moments

        def in_the_middle(*args):
            if fault == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(2 * SECONDS)
            return moments(*args)

        layerwise.label_moments = in_the_middle
    start = time.monotonic()
    try:
        ah.layerwise_alignment(network, x, y, process_group=group)
        error = None
    except ah.RankError as raised:
        error = str(raised)
    same = all(torch.equal(one, before[name]) for name, one in network.state_dict().items())
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    return error, time.monotonic() - start, same and not hooks and all(one.grad is None for one in network.parameters())


def run(tmp_path, fault):
    x, y = data("mlp", torch.float64)
    with ranks_of(2, tmp_path, SECONDS) as pool:
        return pool.run(2, measured, shares(x, COUNTS), shares(y, COUNTS), [fault] * 2)


def test_a_rank_that_is_killed(tmp_path):
    *others, killed = run(tmp_path, "dies")
    assert killed.args[0] == "died"
    for error, seconds, unchanged in others:
        assert "got none of rank 1" in error
        assert seconds < 60
        assert unchanged


def test_a_rank_that_lags(tmp_path):
    *others, _ = run(tmp_path, "lags")
    for error, seconds, unchanged in others:
        assert "got none of rank 1" in error
        assert SECONDS / 2 < seconds < 60
        assert unchanged


def freed(folder):
    """A group goes when it is destroyed; otherwise the process may abort as it ends."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    group = weakref.ref(dist.group.WORLD)
    network, (x, y) = model("mlp", torch.float64), data("mlp", torch.float64)
    tracker = ah.AlignmentTracker(network, x, y, process_group=dist.group.WORLD)
    kernels = ah.tangent_kernels(network, x, process_group=dist.group.WORLD)
    tracker.update(0)
    dist.destroy_process_group()
    assert kernels and group() is None


def test_a_destroyed_group_is_freed(tmp_path):
    """Though trackers and kernels of it are there."""
    process = start(freed, tmp_path)
    process.join(60)
    assert process.exitcode == 0
