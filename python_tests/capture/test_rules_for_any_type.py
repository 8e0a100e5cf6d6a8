"""Rules for modules that have none of their own: those of base classes, a module's own Jacobian, and by_graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import reference
import test_rules
import torch
from torch import Tensor, nn
from torch.nn import functional

import ahkernels as ah
from ahkernels.capture.options import CaptureOptions
from ahkernels.capture.plan import CapturePlan, plan_capture


def check(model: nn.Module, x: Tensor, outputs: Any = "all", **options: Any) -> CapturePlan:
    """Kernels without a certificate against Jacobians, and then the certificate, which finds nothing."""
    model = model.double().eval()
    expected = reference.jacobians(copy.deepcopy(model), x)
    for certify in (0, 1):
        kernels = ah.tangent_kernels(model, x, outputs=outputs, certify=certify, **options)
        for layer, kernel in kernels.items():
            dense = reference.kernels_of_outputs(expected[layer], outputs)
            assert float(dense.norm()) > 0
            assert (kernel.to_dense() - dense).norm() <= 1e-10 * dense.norm(), layer
    plan = planned(model, x, outputs=outputs, certify=1, **options)
    assert not plan.known.without_rule
    return plan


def planned(model: nn.Module, x: Tensor, **options: Any) -> CapturePlan:
    return plan_capture(model, x, CaptureOptions.of(options))


def rules_of(plan: CapturePlan) -> dict[str, str]:
    return {layer.name: type(layer.rule).__name__ for layer in plan.layers.values()}


class Dense(nn.Linear):
    """A subclass that computes what its base class does."""


class Doubled(nn.Linear):
    """One that does not."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class LayerNorm2d(nn.LayerNorm):
    """A norm over channels, which the base class has last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BatchNormAct(nn.BatchNorm2d):
    """A norm with an activation behind it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class SamePadding(nn.Conv2d):
    """Pads its input itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (1, 0, 1, 0)))


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised, and scaled by a gain."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.weight.mean((1, 2, 3), keepdim=True), self.weight.var((1, 2, 3), keepdim=True)
        return self._conv_forward(x, self.gain * (self.weight - mean) / (var + 1e-5).sqrt(), self.bias)


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class LayerScale(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Turned(nn.Module):
    """A linear layer with its weight the other way round."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Twofold(nn.Module):
    """A bilinear form of its input and its sine, with a second output, and an argument that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = TwoOutputs(6, 6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, {"other": x.sin()}, power=1)[0]


class TwoOutputs(nn.Bilinear):
    def forward(self, x: Tensor, others: dict[str, Tensor], *, power: int) -> tuple[Tensor, Tensor]:
        return super().forward(x, others["other"]).pow(power), x


def normed(layer: nn.Module) -> nn.Module:
    """Gives a norm parameters and statistics of its own."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    return layer


# What is built, the shape [n, ...] of its input, and the rule that it has.
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "subclass": (lambda: Dense(6, 6), (6,), "LinearRule"),
    "subclass at positions": (lambda: Dense(6, 6), (3, 6), "LinearRule"),
    "subclass that computes something else": (lambda: Doubled(6, 6), (6,), "OwnJacobianRule"),
    "layer norm of channels": (lambda: LayerNorm2d(4), (4, 5, 6), "OwnJacobianRule"),
    "batch norm with an activation": (lambda: normed(BatchNormAct(4)), (4, 5, 6), "OwnJacobianRule"),
    "convolution with padding of its own": (lambda: SamePadding(4, 4, 2), (4, 5, 6), "GraphRule"),
    "standardised convolution": (lambda: Standardised(4, 4, 3, padding=1), (4, 5, 6), "GraphRule"),
    "standardised in groups": (
        lambda: Standardised(4, 4, (2, 3), padding=(2, 4), dilation=2, stride=(1, 2), groups=2),
        (4, 5, 6),
        "GraphRule",
    ),
    "convolution in one dimension": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3, padding=1)),
        (4, 6),
        "GraphRule",
    ),
    "rms norm": (lambda: RMSNorm(6), (3, 6), "GraphRule"),
    "scale of features": (lambda: LayerScale(6), (3, 6), "GraphRule"),
    "division by features": (lambda: Dividing(6), (3, 6), "OwnJacobianRule"),
    "scale of a single slope": (lambda: nn.PReLU(), (4, 5), "NormRule"),
    "slopes": (lambda: nn.PReLU(4), (4, 5), "NormRule"),
    "bilinear form": (Twofold, (6,), "OwnJacobianRule"),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), (3, 6), "OwnJacobianRule"),
    "turned": (lambda: Turned(6, 6), (6,), "LinearRule"),
    "turned at positions": (lambda: Turned(6, 6), (2, 3, 6), "LinearRule"),
}


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("name", list(MODULES))
def test_modules(name, calls):
    torch.manual_seed(1)
    build, shape, rule = MODULES[name]
    plan = check(test_rules.Head(build(), shape, calls), torch.randn(7, 6, dtype=torch.float64))
    assert set(rules_of(plan).values()) == {rule}


@pytest.mark.parametrize("outputs", ["trace", "sum", 1, [2, 0]], ids=str)
@pytest.mark.parametrize("name", ["subclass at positions", "standardised convolution", "rms norm", "weight norm"])
def test_outputs_of_modules(name, outputs):
    torch.manual_seed(1)
    build, shape, rule = MODULES[name]
    plan = check(test_rules.Head(build(), shape), torch.randn(7, 6, dtype=torch.float64), outputs)
    assert set(rules_of(plan).values()) == {rule}


class ConvNext(nn.Module):
    """A block with a scale of its own around modules with parameters."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(4)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.gamma, self.in_place = nn.Parameter(torch.randn(4)), in_place

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.down(functional.gelu(self.up(h))).permute(0, 3, 1, 2)
        scaled = h * self.gamma.reshape(1, -1, 1, 1)
        return scaled.add_(x) if self.in_place else x + scaled


class Vision(nn.Module):
    """A class token, a register that is repeated, a table of positions of which a part is used, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.token, self.register = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(6))
        self.positions, self.unused = nn.Parameter(torch.randn(1, 9, 6)), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.view(-1, 3, 2))
        h = torch.cat([self.token.expand(len(x), -1, -1), self.register.repeat(len(x), 1, 1), h], 1)
        h = h + self.positions[:, : h.shape[1]]
        h = h + torch.tanh(self.mix(h))
        return self.head(h[:, 0] * h[:, 1:].mean(1))


class Gated(nn.Module):
    """Scalars, functions of parameters, differences, a factor of a sum, and a parameter that is used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.scale, self.gate = nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(6))
        self.rows = nn.Parameter(torch.randn(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + self.scale * torch.tanh(self.second(h))
        h = torch.sub(h, 1 + self.gate.exp(), alpha=3) * torch.sigmoid(self.gate) - self.rows[0]
        h = torch.add(self.gate, h, alpha=2) + torch.stack([self.gate, self.rows[1]]).sin().sum(0)
        return self.last(torch.tanh(h))


class Listed(nn.Module):
    """Parameters in a list, which is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.scales, self.inner = nn.ParameterList([torch.randn(6), torch.randn(1)]), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x * self.scales[0]).sin()) * self.scales[1]


CONTAINERS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "convolutional block": (lambda: test_rules.Head(ConvNext(), (4, 5, 6), 2), {"layer": "GraphRule"}),
    "block in place": (lambda: test_rules.Head(ConvNext(in_place=True), (4, 5, 6)), {"layer": "GraphRule"}),
    "vision transformer": (Vision, {"(root)": "GraphRule"}),
    "gates": (Gated, {"(root)": "GraphRule"}),
    "list": (Listed, {"scales": "GraphRule"}),
}


@pytest.mark.parametrize("n", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("name", list(CONTAINERS))
def test_containers(name, n):
    """Also where there are as many samples as positions or features."""
    torch.manual_seed(2)
    build, expected = CONTAINERS[name]
    model = build().double().eval()
    x = torch.randn(n, 6, dtype=torch.float64)
    jacobians = reference.jacobians(model, x)
    for layer, kernel in ah.tangent_kernels(model, x).items():
        dense = reference.kernels_of_outputs(jacobians[layer], "all")
        assert (kernel.to_dense() - dense).norm() <= 1e-10 * dense.norm(), layer
    if n == 9:
        found = rules_of(check(model, x))
        assert "NoneType" not in found.values() and expected.items() <= found.items()


@pytest.mark.parametrize("outputs", ["trace", "sum", 1], ids=str)
@pytest.mark.parametrize("name", list(CONTAINERS))
def test_outputs_of_containers(name, outputs):
    torch.manual_seed(2)
    plan = check(CONTAINERS[name][0](), torch.randn(7, 6, dtype=torch.float64), outputs)
    assert "NoneType" not in rules_of(plan).values()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*MODULES, *CONTAINERS])
def test_no_false_alarm(name, dtype):
    torch.manual_seed(3)
    if name in MODULES:
        build, shape, rule = MODULES[name]
        model, expected = test_rules.Head(build(), shape), {rule}
    else:
        model, expected = CONTAINERS[name][0](), set(CONTAINERS[name][1].values())
    model, x = model.to(dtype).eval(), torch.randn(33, 6, dtype=dtype)
    ah.tangent_kernels(model, x, certify=1)
    plan = planned(model, x, certify=1)
    found = set(rules_of(plan).values())
    assert not plan.known.without_rule and expected <= found and "NoneType" not in found


class Dividing(nn.Module):
    """Uses a parameter in a way that the graph does not tell, and counts its calls."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.rand(size) + 1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / self.scale


class Stateful(Dividing):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.calls


class OfChance(Dividing):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * torch.rand(x.shape[-1])


class AcrossSamples(nn.Module):
    """Positions come first, so that the first dimension is not that of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Dividing(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x.transpose(0, 1)).transpose(0, 1)


class Dismantled(Dividing):
    """A container that divides, and uses a weight of a module that it does not call."""

    def __init__(self) -> None:
        super().__init__(6)
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x / self.scale, self.inner.weight.exp(), self.inner.bias)


@pytest.mark.parametrize("build", [lambda: Stateful(6), AcrossSamples, Dismantled])
def test_what_takes_the_fallback(build):
    torch.manual_seed(4)
    plan = check(test_rules.Head(build(), (3, 6)), torch.randn(8, 6, dtype=torch.float64))
    assert "NoneType" in rules_of(plan).values()


def test_chance_without_effect_takes_the_fallback():
    torch.manual_seed(4)
    model, x = test_rules.Head(OfChance(6), (3, 6)).double(), torch.randn(8, 6, dtype=torch.float64)
    found = ah.tangent_kernels(model, x)["layer"].to_dense()
    assert rules_of(planned(model, x)) == {"layer": "NoneType"}
    model.layer.__class__ = Dividing
    torch.testing.assert_close(found, ah.tangent_kernels(model, x)["layer"].to_dense())


def test_a_jacobian_that_does_not_fit_is_summed_up_by_the_fallback():
    torch.manual_seed(4)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 2000))
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(2000, 1))
    x = torch.randn(20, 6, dtype=torch.float64)
    assert rules_of(check(model, x))["0"] == "OwnJacobianRule"
    assert rules_of(check(model, x, memory_budget=500_000))["0"] == "NoneType"


def test_what_failed_is_not_tried_again(monkeypatch):
    model, x = nn.Sequential(Doubled(6, 3)), torch.randn(8, 6)
    tried = []
    monkeypatch.setattr(Doubled, "forward", lambda self, x: tried.append(1) or 2 * functional.linear(x, self.weight))
    model[0].bias = None
    first, calls = planned(model, x), len(tried)
    second = planned(model, x)
    assert rules_of(first) == rules_of(second) == {"0": "OwnJacobianRule"}
    assert len(tried) - calls < calls


def test_the_rule_of_another_type(monkeypatch):
    from ahkernels.capture import rules

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 6)), None

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T

    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    model, x = nn.Sequential(Other()), torch.randn(8, 6, dtype=torch.float64)
    assert planned(model.double(), x).layers["0"].doubtful
    ah.register_rule(Other, nn.Linear)
    assert not check(model, x).layers["0"].doubtful
    with pytest.raises(TypeError, match="rule: expected a type of module that has a rule, got Tanh, which has none"):
        ah.register_rule(Other, nn.Tanh)
