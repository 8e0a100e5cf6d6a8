"""The options that all measurements share, and how often and how well a capture is certified."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import ahkernels as ah
from ahkernels.capture import memory, run
from ahkernels.capture.traced import TracedLayer

Y = torch.arange(20) % 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "layer: expected no such option; nearest: layers", {"layer": "0"}),
        (TypeError, "certify: expected 0 .* got 1.5", {"certify": 1.5}),
        (ValueError, "certify: expected 0 .* got -1", {"certify": -1}),
        (ValueError, "precision: expected", {"precision": "low"}),
        (TypeError, "progress: expected True or False, got 'yes'", {"progress": "yes"}),
    ],
)
def test_bad_options(error, message, options):
    for measure in (ah.tangent_kernels, ah.explain):
        with pytest.raises(error, match=message):
            measure(network(), torch.randn(20, 5), **options)
    with pytest.raises(error, match=message):
        ah.layerwise_alignment(network(), torch.randn(20, 5), Y, **options)
    with pytest.raises(error, match=message):
        ah.AlignmentTracker(network(), torch.randn(20, 5), Y, **options)


def test_a_tracker_certifies_the_first_update_and_every_kth():
    model, x = network(), torch.randn(20, 5)
    tracker = ah.AlignmentTracker(model, x, Y, certify=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(7):
        certificate = tracker.update(step).report.certificate
        assert list(certificate.differences) == ["0", "2"]
        assert 0 <= max(certificate.differences.values()) < 1e-5
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), Y).backward()
        optimizer.step()
    assert [row.report.certificate.calls_ago for row in tracker.history] == [0, 1, 2, 0, 1, 2, 0]
    again = ah.AlignmentTracker(model, x, Y)
    again.load_state_dict(tracker.state_dict())
    assert [row.report.certificate for row in again.history] == [row.report.certificate for row in tracker.history]


def test_never_and_always():
    model, x = network(), torch.randn(20, 5)
    assert ah.layerwise_alignment(model, x, Y, certify=0).certificate is None
    assert [ah.layerwise_alignment(model, x, Y, certify=1).certificate.calls_ago for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("changes", ["mode", "hook", "attribute", "function", "samples", "frozen", "module", "rule"])
def test_another_structure_is_certified_anew(changes):
    model, x, y = network(), torch.randn(20, 5), Y

    class Scaled(nn.Linear):
        scale, function = 1.0, torch.relu

    model.append(Scaled(3, 3))
    for expected in (0, 1, 2):
        assert ah.layerwise_alignment(model, x, y).certificate.calls_ago == expected
    with torch.no_grad():
        model[0].weight.mul_(2)  # values are not structure
    assert ah.layerwise_alignment(model, x, y).certificate.calls_ago == 3
    if changes == "mode":
        model.eval()
    elif changes == "hook":
        model[0].register_forward_hook(lambda module, args, output: 2 * output)
    elif changes == "attribute":
        model[3].scale = 2.0
    elif changes == "function":
        model[3].function = torch.sigmoid
    elif changes == "samples":
        x, y = x[1:], y[1:]
    elif changes == "frozen":
        model[0].weight.requires_grad_(False)
    elif changes == "rule":
        ah.register_rule(Scaled, ah.capture.rules.linear.LinearRule())
    else:
        model[1] = nn.Tanh()
    assert ah.layerwise_alignment(model, x, y).certificate.calls_ago == 0


def test_a_layer_that_failed_once_stays_with_the_fallback():
    model, x = network(), torch.randn(20, 5)
    model[0].forward = lambda h: nn.functional.linear(h * 2, model[0].weight, model[0].bias)
    first = ah.tangent_kernels(model, x, keep_factors=True)
    second = ah.tangent_kernels(model, x, keep_factors=True)  # not certified
    assert not first["0"].factored and not second["0"].factored and second["2"].factored
    assert torch.equal(first["0"].to_dense(), second["0"].to_dense())


def test_every_chunk_is_certified(monkeypatch):
    monkeypatch.setattr(memory, "_CHUNK_BYTES", 1)  # chunks of one sample
    model, x = network().double(), torch.randn(20, 5, dtype=torch.float64)
    expected, true = ah.tangent_kernels(model, x)["0"].to_dense(), run.factors_of

    def faulty(call, layer, *rest):
        a, g = true(call, layer, *rest)
        late = torch.allclose(call.output, model(x[-1:]))
        return (2 * a, g) if late and layer.name == "0" else (a, g)

    monkeypatch.setattr(run, "factors_of", faulty)
    found = ah.tangent_kernels(model, x, certify=1, keep_factors=True)
    assert not found["0"].factored and found["2"].factored
    torch.testing.assert_close(found["0"].to_dense(), expected)


def test_a_certificate_has_the_largest_difference_of_any_chunk(monkeypatch):
    monkeypatch.setattr(memory, "_CHUNK_BYTES", 1)  # chunks of one sample
    true, differences = run.compare, {}

    def compared(reference, captured):
        for (layer, _, _), found in zip(captured, true(reference, captured), strict=True):
            of_layer = differences.setdefault(layer.name, [])
            of_layer.append(1e-13 / (1 + len(of_layer)))  # the first is the largest
            yield [replace(one, difference=of_layer[-1]) for one in found]

    monkeypatch.setattr(run, "compare", compared)
    model, x = network().double(), torch.randn(20, 5, dtype=torch.float64)
    report = ah.layerwise_alignment(model, x, Y, certify=1)
    assert {len(of_layer) for of_layer in differences.values()} == {20}
    assert report.certificate.differences == {"0": 1e-13, "2": 1e-13}


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv1d])
def test_a_missing_bias_does_not_hide_behind_its_weight(kind, monkeypatch):
    """Inputs of a million make the gradient of the weight a million times that of the bias."""
    layer, shape = (nn.Linear(5, 8), (20, 5)) if kind is nn.Linear else (nn.Conv1d(2, 4, 2), (20, 2, 3))
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(8, 3)).double()
    x = 1e6 * torch.randn(*shape, dtype=torch.float64)
    expected, right = ah.tangent_kernels(model, x)["0"].to_dense(), TracedLayer.bias.fget
    monkeypatch.setattr(TracedLayer, "bias", property(lambda one: right(one) and (one.name != "0" or one.rule is None)))
    found = ah.tangent_kernels(model, x, certify=1, keep_factors=True)["0"]
    assert not found.factored
    torch.testing.assert_close(found.to_dense(), expected, rtol=1e-12, atol=1e-6)


def test_parameters_that_change_meanwhile_are_refused():
    model, x = network(), torch.randn(20, 5)
    kernels = ah.iter_tangent_kernels(model, x, memory_budget=1)
    next(kernels)
    with torch.no_grad():
        model[2].weight.add_(1)
    with pytest.raises(RuntimeError, match=r"expected parameters that stay as they are .* changes of '2\.weight'"):
        next(kernels)


def test_certificate_of_a_layer_that_is_not_finite_is_nan():
    model, x = network(), torch.randn(20, 5)
    with torch.no_grad():
        model[2].weight.fill_(math.inf)
    with pytest.raises(ah.NonFiniteError):
        ah.layerwise_alignment(model, x, Y)
    certificate = ah.Certificate({"0": math.nan, "2": 1e-8}, 4)
    assert certificate.to_dict() == {"differences": {"0": None, "2": 1e-8}, "calls_ago": 4}
    again = ah.Certificate.from_dict(certificate.to_dict())
    assert math.isnan(again.differences["0"]) and again.calls_ago == 4


@pytest.mark.parametrize(
    "state", [None, {}, {"differences": [], "calls_ago": 0}, {"differences": {}, "calls_ago": None}]
)
def test_what_is_no_certificate(state):
    with pytest.raises(ValueError, match=r"certificate: expected \{differences"):
        ah.Certificate.from_dict(state)
    numbers = {name: [1.0] for name in ("cka", "centered_norm", "trace")}
    if state is not None:
        with pytest.raises(TypeError, match="certificate: expected a Certificate or None"):
            ah.AlignmentReport(["a"], numbers, 2, "all", "highest", certificate=state)
