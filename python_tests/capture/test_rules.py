"""Every rule with its options, and what takes the fallback, against torch.func Jacobians in fp64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networks
import pytest
import reference
import torch
from against_jacobians import check
from torch import Tensor, nn

import ahkernels as ah


class Head(nn.Module):
    """A layer under test between a linear map without parameters and a sum of what comes out."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], calls: int = 1) -> None:
        super().__init__()
        self.layer, self.shape, self.calls = layer, shape, calls
        generator = torch.Generator().manual_seed(7)
        self.register_buffer("spread", torch.randn(6, torch.Size(shape).numel(), generator=generator) / 3)

    def forward(self, x: Tensor) -> Tensor:
        h = (x @ self.spread).view(-1, *self.shape)
        for _ in range(self.calls):
            h = torch.tanh(self.layer(h))
        h = h.flatten(1)
        return torch.stack([h.sum(1), (h * torch.linspace(-1, 1, h.shape[1])).sum(1), h.square().mean(1)], 1)


def conv(dims: int, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(nn, f"Conv{dims}d")(*arguments, **options)


def transposed(dims: int, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(nn, f"ConvTranspose{dims}d")(*arguments, **options)


SHAPES = {1: (4, 7), 2: (4, 5, 6), 3: (4, 3, 4, 2)}
CONVOLUTIONS = {
    "plain": conv(2, 4, 3, 3),
    "no bias": conv(2, 4, 3, 2, bias=False),
    "stride": conv(2, 4, 3, (2, 3), stride=(2, 1)),
    "stride that leaves a rest": conv(1, 4, 3, 2, stride=3),
    "padding": conv(2, 4, 3, 3, padding=(2, 1)),
    "same": conv(2, 4, 3, (2, 3), padding="same"),
    "valid": conv(2, 4, 3, 2, padding="valid"),
    "dilation": conv(2, 4, 3, 2, dilation=(2, 3)),
    **{mode: conv(2, 4, 3, 3, padding=(1, 2), padding_mode=mode) for mode in ("reflect", "replicate", "circular")},
    "same, circular": conv(2, 4, 3, (2, 3), padding="same", padding_mode="circular", dilation=2),
    "groups": conv(2, 4, 6, 2, groups=2),
    "groups without bias": conv(1, 4, 2, 3, groups=2, stride=2, padding=1, bias=False),
    "depthwise": conv(2, 4, 4, 3, groups=4, padding=1),
    "depthwise multiplier": conv(2, 4, 12, 2, groups=4, dilation=2),
    "3d": conv(3, 4, 3, (2, 3, 1), padding=(1, 0, 0), stride=(1, 2, 1)),
    "3d groups": conv(3, 4, 4, 2, groups=2),
    "1 x 1": conv(2, 4, 3, 1),
}
TRANSPOSED = {
    "plain": transposed(2, 4, 3, 3),
    "no bias": transposed(1, 4, 3, 2, bias=False),
    "stride": transposed(2, 4, 3, (2, 3), stride=(3, 2)),
    "padding": transposed(2, 4, 3, 3, stride=2, padding=(2, 1)),
    "output padding": transposed(2, 4, 3, 3, stride=3, padding=1, output_padding=(2, 1)),
    "output padding beyond the kernel": transposed(1, 4, 3, 1, stride=3, output_padding=2),
    "dilation": transposed(2, 4, 3, 2, dilation=(2, 3)),
    "groups": transposed(2, 4, 6, 2, groups=2, stride=2),
    "depthwise": transposed(1, 4, 4, 3, groups=4, bias=False),
    "3d": transposed(3, 4, 2, (2, 1, 2), stride=(2, 1, 1)),
}
NORMS = {
    "batch": lambda: nn.BatchNorm2d(4),
    "batch with eps": lambda: nn.BatchNorm2d(4, eps=0.3),
    "layer": lambda: nn.LayerNorm((5, 6)),
    "layer without bias": lambda: nn.LayerNorm(6, bias=False),
    "rms": lambda: nn.RMSNorm((4, 5, 6)),
    "rms with eps": lambda: nn.RMSNorm(6, eps=0.1),
    "group": lambda: nn.GroupNorm(2, 4, eps=0.1),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance with statistics": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", list(CONVOLUTIONS))
def test_convolutions(name):
    layer = CONVOLUTIONS[name]()
    assert check(Head(layer, SHAPES[len(layer.kernel_size)]), torch.randn(5, 6, dtype=torch.float64)) == set()


@pytest.mark.parametrize(
    "layer",
    [
        conv(2, 4, 4, 3, padding=1),
        conv(2, 4, 4, 3, padding=1, groups=2),
        conv(2, 4, 4, 3, padding=1, groups=4, bias=False),
        transposed(2, 4, 4, 2),
        transposed(2, 4, 4, 2, groups=4),
    ],
    ids=["convolution", "groups", "depthwise", "transposed", "transposed in groups"],
)
def test_convolutions_that_are_used_twice(layer):
    assert check(Head(layer(), SHAPES[2], calls=2), torch.randn(5, 6, dtype=torch.float64)) == set()


@pytest.mark.parametrize("outputs", ["trace", "sum", 1])
@pytest.mark.parametrize("name", ["plain", "depthwise"])
def test_outputs_of_convolutions(name, outputs):
    x = torch.randn(5, 6, dtype=torch.float64)
    assert check(Head(CONVOLUTIONS[name](), SHAPES[2]), x, outputs=outputs) == set()
    assert check(Head(TRANSPOSED["plain"](), SHAPES[2]), x, outputs=outputs) == set()


@pytest.mark.parametrize("name", list(TRANSPOSED))
def test_transposed_convolutions(name):
    layer = TRANSPOSED[name]()
    assert check(Head(layer, SHAPES[len(layer.kernel_size)]), torch.randn(5, 6, dtype=torch.float64)) == set()


class WithOutputSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose1d(2, 2, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.layer(x.view(-1, 2, 3), output_size=[8]))
        return torch.tanh(self.layer(h[..., :5])).flatten(1)[:, ::5]


def test_transposed_convolution_with_an_output_size_used_twice():
    assert check(WithOutputSize(), torch.randn(5, 6, dtype=torch.float64)) == set()


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("name", list(NORMS))
def test_norms(name, calls):
    layer = NORMS[name]()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    if getattr(layer, "running_mean", None) is not None:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2.0)
    assert check(Head(layer, SHAPES[2], calls), torch.randn(5, 6, dtype=torch.float64)) == set()


class Vocabulary(nn.Module):
    def __init__(self, embedding: nn.Module, *, weighted: bool = False, offsets: bool = False) -> None:
        super().__init__()
        self.embedding, self.out, self.weighted, self.offsets = embedding, nn.Linear(5, 3), weighted, offsets

    def forward(self, x: Tensor) -> Tensor:
        if self.weighted:
            return self.out(self.embedding(x, per_sample_weights=self.out.weight.new_ones(x.shape).cumsum(1)).exp())
        if self.offsets:
            return self.out(self.embedding(x.flatten(), torch.arange(len(x)) * x.shape[1]).exp())
        h = self.embedding(x).exp()
        return self.out(h if h.dim() == 2 else h.flatten(1, -2).prod(1))


EMBEDDINGS = {
    "embedding": (lambda: Vocabulary(nn.Embedding(9, 5)), set()),
    "padding": (lambda: Vocabulary(nn.Embedding(9, 5, padding_idx=2)), set()),
    "sums": (lambda: Vocabulary(nn.EmbeddingBag(9, 5, mode="sum")), set()),
    "means": (lambda: Vocabulary(nn.EmbeddingBag(9, 5)), set()),
    "means with padding": (lambda: Vocabulary(nn.EmbeddingBag(9, 5, padding_idx=2)), set()),
    "weighted": (lambda: Vocabulary(nn.EmbeddingBag(9, 5, mode="sum"), weighted=True), set()),
    "maxima": (lambda: Vocabulary(nn.EmbeddingBag(9, 5, mode="max")), set()),
    "offsets": (lambda: Vocabulary(nn.EmbeddingBag(9, 5, mode="sum"), offsets=True), {"embedding"}),
}


@pytest.mark.parametrize("name", list(EMBEDDINGS))
def test_embeddings(name):
    build, fallback = EMBEDDINGS[name]
    words = torch.randint(0, 9, (6, 4))
    words[0] = torch.tensor([2, 2, 5, 5])
    assert check(build(), words) == fallback
    if name == "embedding":
        assert check(build(), words[:, 0]) == set()
        assert check(build(), words.view(6, 2, 2)) == set()


class Attending(nn.Module):
    """Attention in every way that its arguments allow."""

    def __init__(self, how: str, **options: Any) -> None:
        super().__init__()
        options = {"batch_first": True} | options
        self.how, self.attention, self.out = how, nn.MultiheadAttention(4, 2, **options), nn.Linear(4, 3)
        for parameter in self.attention.parameters():
            nn.init.normal_(parameter, std=0.7)

    def forward(self, x: Tensor) -> Tensor:
        h, other = x.view(-1, 3, 4), x.view(-1, 4, 3)[..., [0, 1, 2, 0]]
        mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
        if self.how == "self":
            z, _ = self.attention(h, h, h)
        elif self.how == "keywords":
            z, _ = self.attention(query=h, key=h, value=h, need_weights=False)
        elif self.how == "cross":
            z, _ = self.attention(h, other, other.sin())
        elif self.how == "memory":
            z, _ = self.attention(h, other, other)
        elif self.how == "values":
            z, _ = self.attention(h, h, h.sin())
        elif self.how == "causal":
            z, _ = self.attention(h, h, h, attn_mask=mask, is_causal=True, need_weights=False)
        elif self.how == "added":
            scores = torch.linspace(-1, 1, 9, dtype=x.dtype).view(1, 3, 3).repeat(2 * len(x), 1, 1)
            z, _ = self.attention(h, h, h, attn_mask=scores)
        elif self.how == "padded":
            z, _ = self.attention(h, h, h, key_padding_mask=(h[..., 0] > 0.5) & (torch.arange(3) > 0), attn_mask=mask)
        elif self.how == "twice":
            z, _ = self.attention(h, h, h)
            z, _ = self.attention(z.tanh(), h, h)
        elif self.how == "weights":
            z, weights = self.attention(h, h, h)
            z = z + weights.sum(1).pow(2).unsqueeze(2)
        else:
            assert self.how == "time first"
            h = h.transpose(0, 1)
            z = self.attention(h, h, h)[0].transpose(0, 1)
        return self.out(z.tanh().mean(1))


BOTH = {"attention", "attention.out_proj"}
ATTENTIONS = {
    **{
        how: (how, {}, set())
        for how in ("self", "keywords", "cross", "memory", "values", "causal", "added", "padded", "twice")
    },
    "no bias": ("self", {"bias": False}, set()),
    "weights": ("weights", {}, BOTH),
    "time first": ("time first", {"batch_first": False}, BOTH),
    "other sizes": ("cross", {"kdim": 4, "vdim": 4}, set()),
    "other sizes of keys": ("cross", {"kdim": 4, "vdim": 4, "add_bias_kv": True}, BOTH),
    "zero attention": ("self", {"add_zero_attn": True}, BOTH),
}


@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_attention(name):
    how, options, fallback = ATTENTIONS[name]
    assert check(Attending(how, **options), torch.randn(5, 12, dtype=torch.float64)) == fallback


class Separate(nn.Module):
    """Queries, keys and values of three sizes: three projections instead of one."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z, _ = self.attention(x.view(-1, 3, 4), x.view(-1, 4, 3), x[:, :8].reshape(-1, 4, 2))
        return self.out(z.tanh().mean(1))


def test_attention_of_three_sizes():
    assert check(Separate(), torch.randn(5, 12, dtype=torch.float64)) == BOTH


class LanguageModel(nn.Module):
    """A GPT-style block: positions, pre-norm attention, MLP, and a head that is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(11, 8), nn.Parameter(torch.randn(5, 8))
        self.norm1, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True, bias=False)
        self.norm2, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm3, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.positions
        z = self.norm1(h)
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
        h = h + self.attention(z, z, z, attn_mask=mask, need_weights=False)[0]
        h = h + self.down(nn.functional.gelu(self.up(self.norm2(h))))
        return self.head(self.norm3(h))[:, -1]


def test_language_model():
    """The tied table is a layer of its own, with the cross terms of embedding and head."""
    model, words = LanguageModel(), torch.randint(0, 11, (6, 5))
    assert check(model, words) == set()
    y = torch.randint(0, 11, (6,))
    report = ah.layerwise_alignment(model, words, y, layers={"all": "*", "attention": "attention*"})
    jacobians = reference.jacobians(model, words)
    for name, members in {"all": list(jacobians), "attention": ["attention", "attention.out_proj"]}.items():
        k = reference.kernels_of_outputs(torch.cat([jacobians[member] for member in members], 2), "all")
        assert report[name] == pytest.approx(reference.cka(k, reference.label_kernel(y, 11, "all")), rel=1e-10)


def test_vision_transformer_and_encoder_layer():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Unflatten(1, (3, 4)), layer, nn.Flatten(), nn.Linear(12, 3))
    assert check(model, torch.randn(5, 12, dtype=torch.float64)) == set()
    assert check(networks.Transformer(), torch.randn(7, 6, dtype=torch.float64)) == set()


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class ScaleRule:
    def parameters(self, module):
        return ["scale"]

    def record(self, module, args, kwargs):
        return args[0]

    def factors(self, module, recorded, gradient):
        return recorded.new_empty(len(recorded), 1, 0), (gradient * recorded).unsqueeze(2)

    def has_bias(self, module):
        return True


def test_a_rule_of_the_user(monkeypatch):
    from ahkernels.capture import rules

    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    model, x = nn.Sequential(nn.Linear(6, 4), Scale(), nn.Tanh(), nn.Linear(4, 3)), torch.randn(5, 6).double()
    formed, factors = [], ScaleRule.factors
    monkeypatch.setattr(ScaleRule, "factors", lambda *arguments: formed.append(1) or factors(*arguments))
    assert check(model, x) == set() and not formed
    ah.register_rule(Scale, ScaleRule())
    assert check(model, x) == set() and formed


def test_a_rule_that_records_no_tensor(monkeypatch):
    from ahkernels.capture import rules

    monkeypatch.setattr(rules, "_RULES", {**rules._RULES, Scale: ScaleRule()})
    monkeypatch.setattr(ScaleRule, "record", lambda *_: 3)
    with pytest.raises(TypeError, match=r"rule: expected record\(\) for layer '1' to return a tensor, .*, got int"):
        ah.tangent_kernels(nn.Sequential(nn.Linear(6, 4), Scale()), torch.randn(5, 6))


def test_bad_rules():
    with pytest.raises(TypeError, match=r"module_type: expected a subclass of torch\.nn\.Module, got 3"):
        ah.register_rule(3, None)
    with pytest.raises(TypeError, match="got one without parameters, record, factors, has_bias"):
        ah.register_rule(nn.PReLU, object())


class Strange(nn.Module):
    """Control flow on its input, a loop, in-place operations, a scatter, and a parameter it indexes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 5, dtype=x.dtype)
        order = x.argsort(1)
        for column in range(3):
            h = h + self.table[order[:, column]] * x[:, column : column + 1]
            h.clamp_(min=-2)
        z = h.clone()
        z[:, 1:] += (h @ self.mix).sin()[:, :-1]
        return torch.linalg.norm(z.view(-1, 1, 5) * self.mix[:3], dim=2)


def test_a_strange_forward():
    model = nn.Sequential(nn.Linear(6, 6), Strange(), nn.Tanh(), nn.Linear(3, 2))
    assert check(model, torch.randn(7, 6, dtype=torch.float64)) == set()


class Dismantled(nn.Module):
    """The same operations on the parameters of a module that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Strange()

    def forward(self, x: Tensor) -> Tensor:
        return Strange.forward(self.inner, x)


def test_fallback_on_a_strange_forward():
    model = nn.Sequential(nn.Linear(6, 6), Dismantled(), nn.Tanh(), nn.Linear(3, 2))
    assert check(model, torch.randn(7, 6, dtype=torch.float64)) == {"1.inner"}


class Counting(nn.Module):
    """Calls change its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 4), nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
        self.out, self.scale = nn.Linear(4, 3), nn.Parameter(torch.ones(1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.out(self.norm(self.linear(x).view(-1, 2, 2)).flatten(1).sin()) * self.scale


def test_buffers_are_left_as_they_are():
    model, x = Counting(), torch.randn(40, 6)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    ah.layerwise_alignment(model, x, torch.randint(0, 3, (40,)))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class Rescaled(nn.Module):
    """A parameter changed in place by the call: in one of three ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.linear, self.way = nn.Linear(6, 3), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "data":
            self.linear.weight.data.div_(2)
        with torch.no_grad():
            if self.way == "view":
                self.linear.weight[0].div_(2)
            if self.way == "out":
                torch.div(self.linear.weight, 2, out=self.linear.weight)
        return self.linear(x)


@pytest.mark.parametrize("way", ["data", "view", "out"])
def test_a_call_that_changes_a_parameter_is_refused_and_leaves_it(way):
    model = Rescaled(way)
    before = model.linear.weight.clone()
    with pytest.raises(
        ValueError, match=r"expected calls that leave .* got one that changes 'linear\.weight' in place"
    ):
        ah.layerwise_alignment(model, torch.randn(4, 6), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(model.linear.weight, before)


# Modules whose outputs are views, or none, and the shape of their inputs.
BEFORE_IN_PLACE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear on tokens": (lambda: nn.Linear(5, 4), (3, 5)),
    "linear on tokens, no bias": (lambda: nn.Linear(5, 4, bias=False), (3, 5)),
    "linear on a grid of tokens": (lambda: nn.Linear(5, 4), (2, 3, 5)),
    "convolution": (lambda: nn.Conv1d(3, 4, 2), (3, 5)),
    "layer norm": (lambda: nn.LayerNorm(5), (3, 5)),
    "batch norm": (lambda: nn.BatchNorm1d(3), (3, 5)),
    "instance norm": (lambda: nn.InstanceNorm1d(3, affine=True), (3, 5)),
    "instance norm of images": (lambda: nn.InstanceNorm2d(3, affine=True), (3, 4, 5)),
}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("name", BEFORE_IN_PLACE)
def test_an_activation_in_place_leaves_the_rule_of_the_layer_before(name, beside):
    layer, shape = BEFORE_IN_PLACE[name]
    model = nn.Sequential(layer(), nn.ELU(inplace=True), nn.Flatten(), nn.LazyLinear(3)).double().eval()
    x = torch.randn(4, *shape, dtype=torch.float64)
    model(x)
    if beside:  # only some of the numbers, and an output that is used once more
        model = InPlaceBeside(*model)
    assert check(model, x) == set()


class InPlaceBeside(nn.Module):
    """Doubles a part of what the layer gives in place, and adds what it was."""

    def __init__(self, layer: nn.Module, activation: nn.Module, flatten: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.layer, self.activation, self.flatten, self.head = layer, activation, flatten, head

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        before = h.clone()
        h[:, 0].mul_(2)
        return self.head(self.flatten(self.activation(h) + before))


class Inside(nn.Module):
    """A call that changes tensors of its own in place, one of them without storage."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.eye(6).to_sparse()
        mask.mul_(2)
        return self.linear((mask @ x.T).T.contiguous().mul_(0.5))


def test_a_call_may_change_tensors_of_its_own():
    model, x = Inside(), torch.randn(4, 6)
    expected = ah.layerwise_alignment(model.linear, x, torch.tensor([0, 1, 2, 1]))
    report = ah.layerwise_alignment(model, x, torch.tensor([0, 1, 2, 1]))
    assert torch.allclose(report.cka, expected.cka)


def test_a_call_that_changes_its_input_is_refused_and_leaves_it():
    x = torch.randn(4, 6)
    before = x.clone()
    with pytest.raises(ValueError, match=r"got one that changes x in place"):
        ah.layerwise_alignment(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)), x, torch.tensor([0, 1, 2, 1]))
    assert torch.equal(x, before)
