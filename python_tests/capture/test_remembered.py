"""Captures between two certificates use what the trace of an earlier one found, unless the model acts otherwise."""

from __future__ import annotations

import gc
import weakref

import pytest
import reference
import torch
from torch import nn

import ahkernels as ah
from ahkernels.capture import plan

# What the forward of a model reads from outside of it, where no structure shows it.
SWITCH = {"on": False}


class Switched(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        on = SWITCH["on"]
        if on and self.kind == "in place":
            x.mul_(2)
        h = torch.tanh(self.first(x))
        if on and self.kind == "chance":
            h = nn.functional.dropout(h, 0.5)
        if on and self.kind == "twice":
            h = torch.tanh(self.second(h))
        if on and self.kind == "parameter":
            h = h @ self.second.weight
        if not (on and self.kind == "left out"):
            h = torch.tanh(self.second(h))
        return self.last(h)


@pytest.fixture
def traces(monkeypatch):
    """Counts the traces."""
    found, trace_model = [], plan.trace_model

    def counted(*args):
        found.append(args)
        return trace_model(*args)

    monkeypatch.setattr(plan, "trace_model", counted)
    return found


@pytest.fixture(autouse=True)
def switched_off():
    SWITCH["on"] = False
    yield
    SWITCH["on"] = False


def dense(model, x, **options):
    return {name: kernel.to_dense() for name, kernel in ah.tangent_kernels(model, x, **options).items()}


@pytest.mark.parametrize("memory_budget", [1, 1 << 30])
def test_a_model_is_traced_for_each_certificate(traces, memory_budget):
    model = Switched("none").double()
    for step in range(7):
        x = torch.randn(20, 5, dtype=torch.float64)
        for name, kernel in ah.tangent_kernels(model, x, certify=3, memory_budget=memory_budget).items():
            j = reference.jacobians(model, x)[name].flatten(0, 1)
            torch.testing.assert_close(kernel.to_dense(), j @ j.T, rtol=1e-10, atol=1e-12)
        assert len(traces) == 1 + step // 3
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)


def test_without_certificates_each_call_is_traced(traces):
    model, x = Switched("none"), torch.randn(20, 5)
    for calls in (1, 2, 3):
        dense(model, x, certify=0)
        assert len(traces) == calls


@pytest.mark.filterwarnings("ignore::ahkernels.DegenerateKernelWarning")  # of the layer that is left out
@pytest.mark.parametrize(("kind", "calls"), [("twice", 2), ("left out", 2), ("parameter", 1)])
def test_layers_that_are_used_otherwise(traces, kind, calls):
    model, x = Switched(kind).double(), torch.randn(20, 5, dtype=torch.float64)
    dense(model, x)
    SWITCH["on"] = True
    found = dense(model, x)
    assert len(traces) == calls  # the graph of the capture shows that a parameter acts elsewhere, too
    expected = dense(model, x, certify=1)
    for name, k in expected.items():
        torch.testing.assert_close(found[name], k, rtol=1e-10, atol=1e-12)


def test_chance_is_noticed(traces):
    model, x = Switched("chance"), torch.randn(20, 5)
    dense(model, x)
    SWITCH["on"] = True
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="deterministic"):
        dense(model, x)
    assert len(traces) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_writing_to_the_inputs_is_refused(traces):
    model, x = Switched("in place"), torch.randn(20, 5)
    dense(model, x)
    SWITCH["on"] = True
    before = x.clone()
    with pytest.raises(ValueError, match="changes x in place"):
        dense(model, x)
    assert len(traces) == 2
    assert torch.equal(x, before)


def test_a_rule_in_doubt_is_looked_at_in_each_call(traces):
    class Scaled(nn.Linear):
        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return super().forward(h)

    torch.manual_seed(0)
    model, x = nn.Sequential(Scaled(5, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(20, 5)
    for calls in (1, 2, 3):
        dense(model, x)
        assert len(traces) == calls


def test_a_model_does_not_live_longer_for_it():
    model, x = Switched("none"), torch.randn(20, 5)
    dense(model, x)
    dense(model, x)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
