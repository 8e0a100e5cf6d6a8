"""A property-based search: on whatever network is drawn, kernels and alignments are those of its Jacobians, in fp64."""

from __future__ import annotations

import warnings

import pytest
import reference
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ahkernels as ah
from ahkernels.capture import certify, run

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.Identity, lambda: nn.ReLU(inplace=True))
OF_IMAGES = ("convolution", "transposed", "pool", "batch norm", "group norm", "instance norm", "tokens", "scale")
OF_TOKENS = ("linear", "layer norm", "rms norm", "attention", "bilinear", "flatten", "scale")
OF_VECTORS = ("linear", "layer norm", "batch norm", "weight norm", "scale")


class Scale(nn.Module):
    """A bare parameter, which has no rule."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(shape))

    def forward(self, h: Tensor) -> Tensor:
        return h * self.scale


class Attention(nn.MultiheadAttention):
    """Its attention, as one of the layers that take a single input; a subclass, which has no rule."""

    def forward(self, h: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(h, h, h)[0]


class SelfAttention(nn.Module):
    """The same with the module itself."""

    def __init__(self, width: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        return self.attention(h, h, h, need_weights=False)[0]


class Square(nn.Module):
    """A bilinear form of its input with itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.form = nn.Bilinear(width, width, 2)

    def forward(self, h: Tensor) -> Tensor:
        return self.form(h, h)


class Network(nn.Module):
    """Layers one after the other; some are used again, some stand beside the identity."""

    def __init__(self, layers: list[nn.Module], plan: list[tuple[int, bool]]) -> None:
        super().__init__()
        self.layers, self.plan = nn.ModuleList(layers), plan

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()  # activations may act in place
        for index, beside in self.plan:
            h = self.layers[index](x)
            x = x + h if beside else h
        return x


def layer_of(draw: st.DrawFn, h: Tensor) -> nn.Module:
    """A layer that takes h."""
    flag = lambda: draw(st.booleans())  # noqa: E731
    width = draw(st.integers(1, 4))
    if h.dim() == 4:
        channels = h.shape[1]
        kind = draw(st.sampled_from(OF_IMAGES))
        kernel = tuple(draw(st.integers(1, min(3, size))) for size in h.shape[2:])
        if kind == "convolution":
            groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
            options = {"stride": draw(st.integers(1, 2)), "padding": draw(st.integers(0, 1)), "bias": flag()}
            return nn.Conv2d(channels, groups * width, kernel, groups=groups, **options)
        if kind == "transposed":
            return nn.ConvTranspose2d(channels, width, kernel, stride=draw(st.integers(1, 2)), bias=flag())
        if kind == "pool":
            return nn.AvgPool2d(2, padding=1)
        if kind == "batch norm":
            return nn.BatchNorm2d(channels)
        if kind == "group norm":
            return nn.GroupNorm(1 if flag() else channels, channels)
        if kind == "instance norm":
            return nn.InstanceNorm2d(channels, affine=True)
        return nn.Flatten(2) if kind == "tokens" else Scale(h.shape[1:])
    features = h.shape[-1]
    kind = draw(st.sampled_from(OF_TOKENS if h.dim() == 3 else OF_VECTORS))
    if kind == "linear":
        return nn.Linear(features, 2 * width, bias=flag())
    if kind == "layer norm":
        return nn.LayerNorm(features, bias=flag())
    if kind == "rms norm":
        return nn.RMSNorm(h.shape[1:] if flag() else features)
    if kind == "attention":
        heads = draw(st.sampled_from([k for k in (1, 2) if features % k == 0]))
        return SelfAttention(features, heads, bias=flag()) if flag() else Attention(features, heads, batch_first=True)
    if kind == "bilinear":
        return Square(features)
    if kind == "batch norm":
        return nn.BatchNorm1d(features)
    if kind == "weight norm":
        return nn.utils.parametrizations.weight_norm(nn.Linear(features, width))
    return nn.Flatten() if kind == "flatten" else Scale(h.shape[1:])


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A network in eval mode and its input."""
    seed = draw(st.integers(0, 2**32))
    torch.manual_seed(seed)
    shape = draw(st.sampled_from([(2, 4, 3), (3, 4), (5,)]))
    n = draw(st.integers(1, 6))
    x = torch.randn(n, *shape)
    layers: list[nn.Module] = []
    dims: list[int] = []
    plan: list[tuple[int, bool]] = []
    h = x
    for _ in range(draw(st.integers(1, 5))):
        # A convolution takes tensors of fewer dimensions, too, as a single sample.
        again = [i for i, layer in enumerate(layers) if dims[i] == h.dim() and _takes(layer, h)]
        if again and draw(st.integers(0, 3)) == 0:
            index = draw(st.sampled_from(again))
        else:
            layer = layer_of(draw, h).eval()
            assume(_takes(layer, h[:1]))  # a group norm refuses a single sample of a single number
            # In place only on what is no view, whose base the activation before may have saved.
            activations = ACTIVATIONS[:-1] if isinstance(layer, nn.Flatten) else ACTIVATIONS
            layers.append(nn.Sequential(layer, draw(st.sampled_from(activations))()).eval())
            dims.append(h.dim())
            index = len(layers) - 1
        after = layers[index](h)
        beside = after.shape == h.shape and draw(st.booleans())
        plan.append((index, beside))
        h = after
    layers.append(nn.Sequential(nn.Flatten(), nn.Linear(h[0].numel(), draw(st.integers(1, 3)))))
    plan.append((len(layers) - 1, False))
    model = Network(layers, plan).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model.double(), x.double()


def _takes(layer: nn.Module, h: Tensor) -> bool:
    try:
        return bool(layer(h).isfinite().all())
    except (RuntimeError, AssertionError, ValueError, IndexError):
        return False


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), st.sampled_from(["all", "trace", "sum", 0]), st.sampled_from([1, 1 << 30]))
def test_random_architectures(network, outputs, budget):
    model, x = network
    o = model(x).shape[1]
    y = torch.arange(len(x)) % o
    jacobians = reference.jacobians(model, x)
    labels = reference.label_kernel(y, o, outputs)
    groups = {**{layer: [layer] for layer in jacobians}, "the network": "*"}
    jacobians["the network"] = torch.cat(list(jacobians.values()), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ah.DegenerateKernelWarning)
        kernels = dict(ah.iter_tangent_kernels(model, x, layers=groups, outputs=outputs, memory_budget=budget))
        report = ah.layerwise_alignment(model, x, y, layers=groups, outputs=outputs, memory_budget=budget)
    assert set(kernels) == set(jacobians) == set(report)
    whole = jacobians["the network"].square().sum()
    for layer, kernel in kernels.items():
        expected = reference.kernels_of_outputs(jacobians[layer], outputs)
        # Below a norm that takes out what they do, gradients of parameters are sums that cancel: each may be off by
        # 1e-14 of the largest.
        of_gradients = 1e-14 * whole.sqrt()
        bound = 1e-10 * expected.norm() + of_gradients * expected.norm().sqrt() + of_gradients**2
        assert (kernel.to_dense() - expected).norm() <= bound
        centered = reference.centered(expected).norm()
        if centered > 1e-8 * expected.norm() > 1e-16 * whole and reference.centered(labels).norm() > 1e-12:
            assert report[layer] == pytest.approx(reference.cka(expected, labels), rel=1e-9, abs=1e-10)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_the_certificate_gives_no_false_alarm(network, dtype):
    model, x = network
    model, x = model.to(dtype), x.to(dtype) if x.is_floating_point() else x
    alarms: list[str] = []
    failing = run.Capture._failing

    def watched(of_run: run.Capture, reference: certify.Reference, captured: list) -> set[str]:
        found = failing(of_run, reference, captured)
        alarms.extend(found | reference.mixed)
        return found

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(run.Capture, "_failing", watched)
        ah.tangent_kernels(model, x)
    assert not alarms
