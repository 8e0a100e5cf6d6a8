"""The peak of memory of each rank, beyond model and inputs, is the memory budget and an allowance at most."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import ahkernels as ah
from benchmarks.common import memory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark of Linux"),
]
MIB = 1 << 20
BUDGET = 64 * MIB
ALLOWANCE = 80 * MIB  # for workspaces of the libraries and of the ops
WIDTH, DEPTH, OUTPUTS, COUNT = 64, 9, 100, 600


def peaks(group, budgets):
    """The peaks within memory budgets, and those that are explained, of layers with factors of 15 MiB on each rank."""
    memory.return_freed_blocks()
    torch.manual_seed(0)
    hidden = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = nn.Sequential(nn.Linear(16, WIDTH), nn.ReLU(), *hidden, nn.Linear(WIDTH, OUTPUTS))
    x, y = torch.randn(COUNT, 16), torch.arange(COUNT) % OUTPUTS
    layers = [str(2 * index) for index in range(DEPTH)]
    found = []
    for budget in budgets:
        options = {"process_group": group, "memory_budget": budget, "outputs": "trace", "layers": layers}
        ah.layerwise_alignment(model, x[:4], y[:4], **options)
        explained = ah.explain(model, x, **options).peak_bytes
        held = memory.reset_high_water_mark()
        ah.layerwise_alignment(model, x, y, **options)
        found.append((memory.high_water_mark() - held, explained))
    return found


def test_peak_of_each_rank_is_within_budget_and_allowance(ranks):
    for (small, of_small), (large, of_large) in ranks.all(2, peaks, [[BUDGET, 32 * BUDGET]] * 2):
        assert of_small <= BUDGET and of_small + 60 * MIB < of_large
        assert small <= BUDGET + ALLOWANCE, f"{small / MIB:.0f} MiB"
        assert small + 60 * MIB < large <= of_large + ALLOWANCE, f"{small / MIB:.0f} and {large / MIB:.0f} MiB"
