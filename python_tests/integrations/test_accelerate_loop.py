"""A loop with accelerate, which needs AlignmentTracker alone: wrapped models, accumulation, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ahkernels as ah
from python_tests.integrations.same_bits import same, same_history

accelerate = pytest.importorskip("accelerate")
X, Y = torch.linspace(-1, 1, 24).reshape(8, 3), torch.arange(8) % 2


@pytest.fixture(autouse=True)
def _own_state() -> Any:
    """Accelerators of a process share their state."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


class Run:
    """A network, its optimiser, and an epoch of 5 batches: 3 optimiser steps where two batches are accumulated."""

    def __init__(self, *, tracked: bool = True, unwrap: bool = False, **options: Any) -> None:
        torch.manual_seed(0)
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, **options)
        model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2))
        data = TensorDataset(torch.randn(20, 3), torch.randint(2, (20,)))
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            model, torch.optim.Adam(model.parameters(), lr=0.05), DataLoader(data, 4)
        )
        measured = self.accelerator.unwrap_model(self.model) if unwrap else self.model
        device = self.accelerator.device
        self.tracker = ah.AlignmentTracker(measured, X.to(device), Y.to(device)) if tracked else None
        if self.tracker is not None:
            self.accelerator.register_for_checkpointing(self.tracker)
        self.step = 0

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            for x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = nn.functional.cross_entropy(self.model(x), y)
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                if self.accelerator.sync_gradients:
                    self.step += 1
                    if self.tracker is not None and self.step % 2 == 0:
                        self.tracker.update(self.step, loss=loss)


@pytest.mark.parametrize("options", [{}, {"mixed_precision": "bf16"}], ids=["fp32", "bf16"])
def test_training_is_the_same_without_the_tracker(options: dict[str, Any]) -> None:
    tracked, without = Run(**options), Run(tracked=False, **options)
    for one in (tracked, without):
        torch.manual_seed(1)
        one.train(2)
    assert tracked.tracker is not None and tracked.tracker.steps == [2, 4, 6]
    assert same(tracked.model.state_dict(), without.model.state_dict())


def test_wrappers_are_looked_through() -> None:
    runs = [Run(unwrap=unwrap, dynamo_backend=backend) for unwrap, backend in [(False, "no"), (True, "no")]]
    for run in runs:
        torch.manual_seed(1)
        run.train(1)
    first, second = (run.tracker for run in runs)
    assert first is not None and second is not None and first.layers == ["0", "1", "4"]
    assert same_history(first, second)


def test_a_resumed_run_has_the_history_of_a_whole_one(tmp_path: Path) -> None:
    whole = Run()
    torch.manual_seed(1)
    whole.train(1)
    whole.accelerator.save_state(str(tmp_path))
    whole.train(1)
    resumed = Run()
    resumed.accelerator.load_state(str(tmp_path))  # with the state of random numbers
    resumed.step = 3
    resumed.train(1)
    assert whole.tracker is not None and resumed.tracker is not None and whole.tracker.steps == [2, 4, 6]
    assert same_history(resumed.tracker, whole.tracker)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
