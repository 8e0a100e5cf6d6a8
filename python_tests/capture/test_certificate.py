"""The certificate finds faults in what was captured: the layer then has its Jacobian from autograd, and is right."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import ahkernels as ah
from ahkernels.capture import CaptureOptions, run
from ahkernels.capture.call import call_model
from ahkernels.capture.certify import Reference
from ahkernels.capture.plan import plan_capture
from ahkernels.capture.traced import TracedLayer


class Convolutions(nn.Module):
    """Layers with one position and with many, with biases and without, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3, padding=1)
        self.twice = nn.Linear(4, 4, bias=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        h = torch.tanh(self.convolution(x)).mean((2, 3))
        return self.last(torch.tanh(self.twice(torch.tanh(self.twice(h)))))


def scaled_samples(g, factor):
    return torch.where((torch.arange(g.shape[1]) % 3 == 0)[:, None, None], factor * g, g)


# What happens to a [n, s, d] and g [r, n, s, m] of a layer.
FAULTS = {
    "inputs scaled": lambda a, g: (1.02 * a, g),
    "inputs off": lambda a, g: (a + 0.1, g),
    "inputs of one feature lost": lambda a, g: (torch.cat((0 * a[..., :1], a[..., 1:]), 2), g),
    "inputs without sign": lambda a, g: (a.abs(), g),
    "inputs of another sample": lambda a, g: (a.roll(1, 0), g),
    "inputs in reverse": lambda a, g: (a.flip(0), g),
    "inputs in other features for some samples": lambda a, g: (
        torch.where((torch.arange(len(a)) % 2 == 0)[:, None, None], a.roll(1, 2), a),
        g,
    ),
    "inputs stale": lambda a, g: (torch.ones_like(a), g),
    "inputs rounded": lambda a, g: (a.round(), g),
    "gradients scaled": lambda a, g: (a, 1.02 * g),
    "gradients negated for some samples": lambda a, g: (a, scaled_samples(g, -1)),
    "gradients scaled for some samples": lambda a, g: (a, scaled_samples(g, 1.2)),
    "gradients of another sample": lambda a, g: (a, g.roll(1, 1)),
    "gradients in reverse": lambda a, g: (a, g.flip(1)),
    "gradients of another output": lambda a, g: (a, g.roll(1, 0)),
    "gradients of one output lost": lambda a, g: (a, torch.cat((0 * g[:1], g[1:]), 0)),
    "gradients of one unit lost": lambda a, g: (a, torch.cat((0 * g[..., :1], g[..., 1:]), 3)),
    "gradients of one output scaled": lambda a, g: (a, torch.cat((1.5 * g[:1], g[1:]), 0)),
    "gradients summed over outputs": lambda a, g: (a, g.sum(0, keepdim=True).expand_as(g)),
    "gradients without sign": lambda a, g: (a, g.abs()),
    "gradients clipped": lambda a, g: (a, g.clamp(min=0)),
    "gradients with noise": lambda a, g: (a, g + 0.05 * g.std() * torch.ones_like(g)),
    "gradients averaged over samples": lambda a, g: (a, g.mean(1, keepdim=True).expand_as(g)),
}
OF_POSITIONS = {
    "a position lost": lambda a, g: (a, torch.cat((g[:, :, :-1], 0 * g[:, :, -1:]), 2)),
    "positions shifted": lambda a, g: (a.roll(1, 1), g),
    "positions in reverse": lambda a, g: (a.flip(1), g),
    "a position twice": lambda a, g: (a, torch.cat((g[:, :, :-1], g[:, :, -2:-1]), 2)),
    "positions averaged": lambda a, g: (a.mean(1, keepdim=True).expand_as(a), g),
    "a position scaled": lambda a, g: (a, torch.cat((g[:, :, :-1], 1.5 * g[:, :, -1:]), 2)),
}
# At the last layer the gradients are the same for every sample, and 0 or 1: this changes nothing there.
HARMLESS_LAST = {
    *("gradients of another sample", "gradients in reverse", "gradients averaged over samples"),
    *("gradients of another output", "gradients without sign", "gradients clipped"),
}
CASES = [
    *[("convolution", fault) for fault in FAULTS],
    *[("last", fault) for fault in FAULTS if fault not in HARMLESS_LAST],
    *[(layer, fault) for layer in ("convolution", "twice") for fault in OF_POSITIONS],
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("layer", "fault"), CASES)
def test_faults_in_the_factors(layer, fault, dtype, monkeypatch):
    torch.manual_seed(1)
    model, x = Convolutions().to(dtype), torch.randn(9, 2, 5, 5, dtype=dtype)
    expected = ah.tangent_kernels(model, x, keep_factors=True)
    true, change = run.factors_of, {**FAULTS, **OF_POSITIONS}[fault]

    def faulty(call, planned, *rest):
        a, g = true(call, planned, *rest)
        return change(a, g) if planned.name == layer else (a, g)

    monkeypatch.setattr(run, "factors_of", faulty)
    found = ah.tangent_kernels(model, x, keep_factors=True, certify=1)
    assert not found[layer].factored and expected[layer].factored  # its Jacobian, from the fallback
    for name, kernel in found.items():
        assert name == layer or kernel.factored
        k = expected[name].to_dense()
        assert (kernel.to_dense() - k).norm() <= (1e-9 if dtype == torch.float64 else 1e-4) * k.norm()


@pytest.mark.parametrize("seed", range(3))
def test_a_fault_beside_a_large_mean_gradient(seed, monkeypatch):
    """Inputs that differ by 1e-4 are those of other samples, which the mean gradient would hide."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(6) + 1e-4 * torch.randn(40, 6)
    true = run.factors_of

    def faulty(call, planned, *rest):
        a, g = true(call, planned, *rest)
        return (a.roll(1, 0), g) if planned.name == "0" else (a, g)

    monkeypatch.setattr(run, "factors_of", faulty)
    assert not ah.tangent_kernels(model, x, keep_factors=True, certify=1)["0"].factored


class Doubled(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight, 2 * self.bias)


def test_a_bias_that_acts_twice_does_not_hide_behind_large_inputs():
    """It is a ten-thousandth of what the weight adds to the kernel."""
    model, x = nn.Sequential(Doubled(4, 6), nn.Linear(6, 3)), 100 * torch.randn(9, 4)
    assert not ah.tangent_kernels(model, x, keep_factors=True, certify=1)["0"].factored


def test_any_silent_sample_that_another_one_acts_on_is_seen():
    """Half of the samples have no weight: no gradient may arrive at any of them."""
    n = 6
    last = nn.Linear(4, 3)
    found = []
    for taker, giver in itertools.permutations(range(n), 2):

        class Mixing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.last = nn.Linear(5, 4), last

            def forward(self, x, taker=taker, giver=giver):
                h = self.first(x)
                row = torch.arange(len(h))[:, None]
                return self.last(torch.where(row == taker, h + h[min(giver, len(h) - 1)], h).tanh())

        plan = plan_capture(Mixing(), torch.randn(n, 5), CaptureOptions(layers="first"))
        call = call_model(plan.forward, plan.twin(), plan.x, list(plan.layers.values()))
        reference = Reference(call, list(plan.layers.values()), {"first"}, plan.cotangents, 1 << 20)
        found.append(reference.mixed)
    assert found.count({"first"}) == (n // 2) * (n - n // 2)  # from each sample with weight to each without
    assert found.count(set()) == n * (n - 1) - (n // 2) * (n - n // 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("layer", ["convolution", "twice", "last"])
def test_a_wrong_bias(layer, dtype, monkeypatch):
    torch.manual_seed(1)
    model, x = Convolutions().to(dtype), torch.randn(9, 2, 5, 5, dtype=dtype)
    expected = ah.tangent_kernels(model, x)[layer].to_dense()
    right = TracedLayer.bias.fget

    def wrong(traced):
        return (not right(traced)) if traced.name == layer and traced.rule is not None else right(traced)

    monkeypatch.setattr(TracedLayer, "bias", property(wrong))
    found = ah.tangent_kernels(model, x, keep_factors=True, certify=1)[layer]
    assert not found.factored
    assert (found.to_dense() - expected).norm() <= 1e-4 * expected.norm()


def instance_norms() -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (2, 4):
        layers += [nn.Conv2d(size, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float64, 0.0), (torch.float32, 0.0), (torch.float16, 1e-4), (torch.bfloat16, 1e-3)],
    ids=str,
)
def test_gradients_that_are_all_rounding_are_no_fault(dtype, scale):
    """Norms of images without contrast divide rounding by sqrt(eps), time and again."""
    for seed in range(10):
        torch.manual_seed(seed)
        x = scale * torch.randn(16, 2, 6, 6)
        x[:, :, :3] *= seed % 2
        ah.tangent_kernels(instance_norms().to(dtype), x.to(dtype), certify=1)


def test_a_norm_over_one_feature_leaves_nothing_but_rounding(monkeypatch):
    """Which autograd and the rule each have in their way, in float64 far below whatever counts."""
    monkeypatch.setattr(run.CapturePlan, "without_rule", None)
    x = torch.randn(12, 3, dtype=torch.float64)
    for seed in range(20):
        torch.manual_seed(seed)
        layers = nn.Linear(3, 1), nn.LayerNorm(1, bias=False), nn.Tanh(), nn.Linear(1, 2)
        model = nn.Sequential(*layers).double()
        nn.init.constant_(model[0].bias, 3.0)
        with pytest.warns(ah.DegenerateKernelWarning, match="kernel is zero for 2 layers"):
            report = ah.layerwise_alignment(model, x, torch.arange(12) % 2)
        assert report.certificate.differences["1"] < 1e-12


@pytest.mark.parametrize("n", [1, 2, 5])
def test_features_with_a_large_mean_before_a_norm(n):
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(4, 8), nn.GELU(), nn.Linear(8, 3))
        nn.init.constant_(model[0].bias, 1e4)
        ah.tangent_kernels(model, torch.randn(n, 6), certify=1)


@pytest.mark.parametrize("layers", [["0"], None])
def test_a_capture_that_is_not_read_to_its_end_counts(layers, monkeypatch):
    """`next` takes one kernel, or the first ones, and nobody comes back for what is left."""
    references = []
    true = run.Reference
    monkeypatch.setattr(run, "Reference", lambda *given: references.append(given) or true(*given))
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(8, 4)
    for _ in range(5):
        next(ah.iter_tangent_kernels(model, x, layers=layers, certify=4))
    assert len(references) == 2
