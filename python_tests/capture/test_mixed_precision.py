"""Mixed precision: autocast, parameters of several dtypes, and inputs of another one than the parameters'."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ahkernels as ah

N = 24


class Network(nn.Module):
    """Convolutions, a norm, a block with an adapter, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3), nn.LayerNorm(128)
        self.base, self.down, self.up = nn.Linear(128, 16), nn.Linear(128, 4, bias=False), nn.Linear(4, 16, bias=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.gelu(self.first(x)).flatten(1)
        h = self.norm(h.to(self.norm.weight.dtype)).to(self.base.weight.dtype)
        adapted = self.up(self.down(h.to(self.down.weight.dtype)))
        h = functional.gelu(self.base(h) + adapted.to(self.base.weight.dtype))
        return self.head(h.to(self.head.weight.dtype))


def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(N, 2, 6, 6), torch.arange(N) % 3


def exact() -> Tensor:
    """The alignments of the network in float64."""
    x, y = data()
    return ah.layerwise_alignment(network().double(), x.double(), y).cka


def of_plain_torch(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Alignments by plain autograd of the very network, one sample and one output after the other."""
    layers = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    jacobians: dict[str, list[Tensor]] = {name: [] for name in layers}
    for sample in x:
        for value in model(sample[None])[0]:
            for name in layers:
                own = list(model.get_submodule(name).parameters())
                gradients = torch.autograd.grad(value, own, retain_graph=True)
                jacobians[name].append(torch.cat([one.flatten().double() for one in gradients]))
    found = []
    for name in layers:
        j = torch.stack(jacobians[name])
        labels = functional.one_hot(y, 3).double().flatten()
        j, labels = j - j.mean(0), labels - labels.mean()
        found.append(float((j.T @ labels).square().sum() / ((j.T @ j).norm() * labels.square().sum())))
    order = ah.layerwise_alignment(network(), *data()).layers
    return torch.tensor([found[layers.index(name)] for name in order], dtype=torch.float64)


def of_dtype(dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    return network().to(dtype), data()[0].to(dtype)


def base_with_adapters() -> tuple[nn.Module, Tensor]:
    model = network().bfloat16()
    model.down.float(), model.up.float()
    return model, data()[0].bfloat16()


def backbone_with_head() -> tuple[nn.Module, Tensor]:
    model = network().bfloat16()
    model.head.float(), model.norm.float()
    return model, data()[0].bfloat16()


class CastsInputs(Network):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.first.weight.dtype))


def casts_inputs() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return CastsInputs().bfloat16().eval(), data()[0]  # fp32 inputs


class Autocast(Network):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


def autocast_inside() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Autocast().eval(), data()[0]


CASES = {
    "bf16": lambda: of_dtype(torch.bfloat16),
    "fp16": lambda: of_dtype(torch.float16),
    "bf16 base with fp32 adapters": base_with_adapters,
    "bf16 backbone with fp32 head and norm": backbone_with_head,
    "fp32 inputs that the model casts": casts_inputs,
    "autocast inside": autocast_inside,
}


@pytest.mark.parametrize("case", CASES)
def test_alignments_are_within_the_error_of_the_precision(case):
    model, x = CASES[case]()
    y = data()[1]
    own = (of_plain_torch(model, x, y) - exact()).abs()
    report = ah.layerwise_alignment(model, x, y, certify=1)
    assert torch.equal((report.cka - exact()).abs() <= 3 * own.max() + 1e-3, torch.ones(6, dtype=torch.bool))
    assert max(report.certificate.differences.values()) <= 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("evaluating", [False, True])
def test_autocast_around_the_call(dtype, evaluating):
    model, (x, y) = network(), data()
    with torch.autocast("cpu", dtype):
        own = (of_plain_torch(model, x, y) - exact()).abs()
        if evaluating:
            found = ah.AlignmentTracker(model, x, y, certify=1).update(0).report.cka
        else:
            found = ah.layerwise_alignment(model, x, y, certify=1).cka
        kernels = ah.tangent_kernels(model, x, keep_factors=True)
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == dtype
        products = {name: kernel @ torch.eye(3 * N) for name, kernel in kernels.items()}
        dense = {name: kernel.to_dense() for name, kernel in kernels.items()}
        for name, kernel in dense.items():
            assert kernel.dtype == torch.float32
            assert torch.allclose(products[name].float(), kernel, rtol=1e-3, atol=1e-4 * float(kernel.abs().max()))
    assert (found - exact()).abs().max() <= 3 * own.max() + 1e-3
    assert not torch.equal(found, ah.layerwise_alignment(model, x, y).cka)  # it is the network in the region


def test_autocast_with_the_fallback():
    class Doubled(nn.Linear):
        def forward(self, h):
            return functional.linear(h, 2 * self.weight, self.bias)

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Doubled(8, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(N, 6)
    y = torch.arange(N) % 3
    expected = ah.layerwise_alignment(copy.deepcopy(model).double(), x.double(), y).cka
    with torch.autocast("cpu", torch.bfloat16):
        found = ah.layerwise_alignment(model, x, y, certify=1).cka
    assert (found - expected).abs().max() <= 0.02


def test_attention_under_autocast():
    torch.manual_seed(0)
    attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).eval()
    model = nn.Sequential(attention, nn.Flatten(), nn.Linear(64, 3))
    x, y = torch.randn(N, 4, 16), torch.arange(N) % 3
    expected = ah.layerwise_alignment(copy.deepcopy(model).double(), x.double(), y).cka
    with torch.autocast("cpu", torch.bfloat16):
        assert "fallback" not in [one.route for one in ah.explain(model, x)]
        found = ah.layerwise_alignment(model, x, y, certify=1).cka
    assert (found - expected).abs().max() <= 0.01


def test_groups_of_layers_of_several_dtypes():
    (model, x), y = base_with_adapters(), data()[1]
    groups = {"all": "*", "adapters": ["down", "up"]}
    found = ah.layerwise_alignment(model, x, y, layers=groups)
    expected = ah.layerwise_alignment(network().double(), data()[0].double(), y, layers=groups)
    assert (found.cka - expected.cka).abs().max() <= 0.03
    report = ah.layerwise_alignment(model, x, y, statistics=("forward_cka", "backward_cka", "stable_rank"))
    assert len(report.layers) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.double(), r"x: expected the dtype of the model, torch\.float32, got torch\.float64; write x\.to"),
        (lambda x: x.half(), r"x: expected the dtype of the model, torch\.float32, got torch\.float16; write x\.to"),
        (
            lambda x: x.bfloat16(),
            r"x: expected the dtype of the model, torch\.float32, got torch\.bfloat16; write x\.to",
        ),
    ],
)
def test_inputs_that_the_model_does_not_take(change, message):
    x, y = data()
    with pytest.raises(ValueError, match=message):
        ah.layerwise_alignment(network(), change(x), y)
