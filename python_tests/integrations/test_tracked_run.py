"""TrackedRun: the parts of it that need no framework."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ahkernels.integrations.tracked_run import TrackedRun, _on

X, Y = torch.linspace(-1, 1, 18).reshape(6, 3), torch.arange(6) % 2


def tracked(x=X, *, every=1, module="", **options):
    return TrackedRun(x, Y, every, None, module, (), options)


class Scalars(list):
    def add_scalar(self, tag, value, step):
        self.append((tag, value, step))


def test_samples_go_to_the_device_of_the_model_in_their_structure():
    moved = _on({"a": X, "b": (Y, 2), "c": None}, torch.device("meta"))
    assert {key: type(value) for key, value in moved.items()} == {"a": torch.Tensor, "b": tuple, "c": type(None)}
    assert moved["a"].is_meta and moved["b"][0].is_meta and moved["b"][1] == 2
    empty = torch.empty(0, 3)
    assert _on(empty, torch.device("meta")) is empty


def test_a_row_has_the_alignments_and_the_writer_has_the_metrics_too():
    writer = Scalars()
    run = tracked(writer=writer, centering=("global", "per_output"))
    run.begin(nn.Linear(3, 2), 0, writes=True)
    row = run.measure(0, {"loss": 0.5})
    assert list(row) == ["alignment/global/(root)", "alignment/per_output/(root)"]
    assert writer == [*((tag, value, 0) for tag, value in row.items()), ("loss", 0.5, 0)]
    other = tracked(writer=writer)
    other.begin(nn.Linear(3, 2), 0, writes=False)
    assert len(other.measure(0, {"loss": 0.5})) == 1 and len(writer) == 3


@pytest.mark.parametrize(("step", "steps"), [(4, [0, 4]), (5, [0, 4]), (3, [])])
def test_a_history_that_ends_later_belongs_to_another_run(step, steps):
    run = tracked()
    run.begin(nn.Linear(3, 2), 0, writes=True)
    for at in (0, 4):
        run.measure(at, {})
    earlier = run.tracker
    run.begin(nn.Linear(3, 2), step, writes=True)
    assert run.tracker.steps == steps and earlier.steps == [0, 4]


def test_wrapped_models_have_their_own_parts():
    run = tracked(module="0")
    run.begin(AveragedModel(nn.Sequential(nn.Linear(3, 2), nn.Tanh())), 0, writes=True)
    assert isinstance(run.tracker.model, nn.Linear)


def test_the_group_of_all_processes_may_not_be_there():
    run = tracked(process_group="world")
    run.begin(nn.Linear(3, 2), 0, writes=True)
    run.measure(0, {})
    assert run.tracker.steps == [0]
