"""Situations that users reported, each with the value that plain autograd gives, or the sentence that refuses it."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import ahkernels as ah
from ahkernels.capture import memory

Y = torch.arange(6) % 3


def kernel_by_autograd(model: nn.Module, x: Tensor, parameters: list[Tensor]) -> Tensor:
    """K [n*o, n*o] of some parameters, one sample and output after the other."""
    rows = []
    for sample in x:
        for value in model(sample[None])[0]:
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([g.to_dense().flatten() for g in gradients]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def assert_right(model: nn.Module, x: Tensor, layer: str, module: nn.Module | None = None) -> None:
    module = model.get_submodule(layer) if module is None else module
    expected = kernel_by_autograd(model, x, list(module.parameters(recurse=False)))
    found = ah.tangent_kernels(model, x)[layer]
    torch.testing.assert_close(found.to_dense(), expected, rtol=1e-9, atol=1e-12)


class Network(nn.Module):
    """Two layers, with a forward that a test gives."""

    def __init__(self, forward: Callable[[Network, Tensor], Tensor], hidden: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, hidden), nn.Linear(hidden, 3)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def network(forward: Callable[[Network, Tensor], Tensor]) -> Network:
    return Network(forward).double()


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# ---- a rule's assumptions do not hold


def with_its_gradient(model: Network, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    u = model.last(torch.tanh(model.first(x))).sum(1, keepdim=True)
    (gradient,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return torch.cat([u, gradient[:, :2]], 1)


def with_a_penalty(model: Network, x: Tensor) -> Tensor:
    y = model.last(torch.tanh(model.first(x)))
    return y + 0.1 * model.first.weight.square().sum() * y


def shuffled(model: Network, x: Tensor) -> Tensor:
    order = torch.arange(len(x)).flip(0)
    return model.last(torch.tanh(model.first(x[order]))[order.argsort()])


def rolled_at_the_end(model: Network, x: Tensor) -> Tensor:
    return model.last(torch.tanh(model.first(x.roll(1, 0)))).roll(-1, 0)


def under_vmap(model: Network, x: Tensor) -> Tensor:
    return torch.vmap(lambda one: model.last(torch.tanh(model.first(one))))(x)


def checkpointed(model: Network, x: Tensor) -> Tensor:
    return model.last(checkpoint(lambda z: torch.tanh(model.first(z)), x, use_reentrant=False))


def weight_by_hand(model: Network, x: Tensor) -> Tensor:
    return model.last(torch.tanh(functional.linear(x, 2 * model.first.weight, model.first.bias)))


@pytest.mark.parametrize(
    "forward",
    [
        with_its_gradient,
        with_a_penalty,
        shuffled,
        rolled_at_the_end,
        under_vmap,
        checkpointed,
        weight_by_hand,
    ],
)
@pytest.mark.parametrize("layer", ["first", "last"])
def test_forward_passes_that_rules_know_nothing_of(forward, layer):
    assert_right(network(forward), inputs(6, 5), layer)


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpoints_over_frozen_layers(frozen):
    model = nn.ModuleDict({"a": nn.Linear(5, 8), "b": nn.Linear(8, 8).requires_grad_(not frozen), "c": nn.Linear(8, 3)})

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            a, b, c = self.parts["a"], self.parts["b"], self.parts["c"]
            return c(checkpoint(lambda h: torch.tanh(b(torch.tanh(h))), a(x), use_reentrant=False))

    assert_right(Checkpointed().double(), inputs(6, 5), "parts.a")


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_patched_forward(chunk_bytes, monkeypatch):
    monkeypatch.setattr(memory, "_CHUNK_BYTES", chunk_bytes)  # one sample at a time, or all
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    patched, scale = model[0], torch.arange(1.0, 6, dtype=torch.float64)
    patched.forward = lambda h: functional.linear(h * scale, patched.weight, patched.bias)
    assert_right(model, inputs(6, 5), "0")


def test_a_frozen_layer_that_a_closure_holds():
    frozen = nn.Linear(5, 4).double().requires_grad_(False)
    model = network(lambda model, x: model.last(functional.pad(torch.tanh(frozen(x)), (0, 2))))
    model.frozen = frozen
    x = inputs(6, 5)
    found = ah.tangent_kernels(model, x, layers="frozen")["frozen"].to_dense()
    frozen.requires_grad_(True)
    torch.testing.assert_close(found, kernel_by_autograd(model, x, list(frozen.parameters())))


def test_method_as_forward():
    class Doubled(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model[0].forward = Doubled.forward.__get__(model[0])  # the very same computation, bound to the module
    assert_right(model, inputs(6, 5), "0")


GLOBAL_HOOKS = {
    "register_module_forward_hook": lambda module, _, output: 3 * output if isinstance(module, nn.Linear) else None,
    "register_module_forward_pre_hook": lambda module, args: (args[0] + 1,) if isinstance(module, nn.Linear) else None,
}


@pytest.mark.parametrize("register", list(GLOBAL_HOOKS))
def test_global_hooks(register):
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double(), inputs(6, 5)
    handle = getattr(torch.nn.modules.module, register)(GLOBAL_HOOKS[register])
    try:
        assert_right(model, x, "0")
        assert_right(model, x, "2")
    finally:
        handle.remove()


def test_sparse_embedding_bags():
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.last = nn.EmbeddingBag(9, 4, sparse=True, mode="sum"), nn.Linear(4, 3)

        def forward(self, x):
            n, length = x.shape
            return self.last(self.bag(x.flatten(), torch.arange(0, n * length, length)))

    assert_right(Bags().double(), torch.randint(0, 9, (5, 4)), "bag")


def test_layers_of_several_dtypes():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n, self.c = nn.Linear(5, 16).bfloat16(), nn.LayerNorm(16), nn.Linear(16, 3).bfloat16()

        def forward(self, x):
            return self.c(self.n(self.a(x).float()).bfloat16())

    model, x = Mixed().eval(), torch.randn(6, 5).bfloat16()
    report = ah.layerwise_alignment(model, x, Y)
    for name, kernel in ah.tangent_kernels(model, x).items():
        assert report[name] == pytest.approx(ah.cka(kernel, Y), rel=1e-6)


def test_tensors_of_inference_mode():
    with torch.inference_mode():
        x, made = torch.randn(6, 5), nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        for to, values in zip(model.parameters(), made.parameters(), strict=True):
            to.copy_(values)
    expected = ah.layerwise_alignment(model, x.clone(), Y).cka
    assert torch.equal(ah.layerwise_alignment(model, x, Y).cka, expected)
    assert torch.equal(ah.layerwise_alignment(made, x, Y).cka, expected)


# ---- refused, in a sentence


def attention_across_samples() -> tuple[nn.Module, Tensor]:
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)  # takes [length, n, d]
    return nn.Sequential(block, nn.Flatten(), nn.Linear(32, 3)).double().eval(), inputs(6, 4, 8)


def centered_over_the_batch() -> tuple[nn.Module, Tensor]:
    return network(lambda model, x: model.last(torch.tanh(model.first(x - x.mean(0))))), inputs(6, 5)


def softmax_over_the_batch() -> tuple[nn.Module, Tensor]:
    return network(lambda model, x: model.last(model.first(x).softmax(0))), inputs(6, 5)


@pytest.mark.parametrize("make", [attention_across_samples, centered_over_the_batch, softmax_over_the_batch])
def test_samples_that_act_on_one_another(make):
    model, x = make()
    with pytest.raises(ValueError, match="samples act on one another"):
        ah.layerwise_alignment(model, x, Y)


def test_samples_that_act_on_one_another_a_little_and_without_gradients():
    """By about a hundredth of the outputs, in single precision."""
    model = network(
        lambda model, x: model.last(torch.tanh(model.first(x) + 0.05 * model.first(x).detach().mean(0)))
    ).float()
    with pytest.raises(ValueError, match="samples act on one another"):
        ah.layerwise_alignment(model, inputs(6, 5).float(), Y)


@pytest.mark.parametrize(
    "forward",
    [
        lambda model, x: model.last(functional.dropout(torch.relu(model.first(x)), 0.5, model.training)),
        lambda model, x: model.last(torch.tanh(model.first(x + 0.1 * torch.randn_like(x)))),
        lambda model, x: model.last(torch.bernoulli(torch.sigmoid(model.first(x))) * model.first(x)),
        lambda model, x: model.last(attention(model.first(x), 0.5)),
    ],
    ids=["dropout", "noise", "bernoulli", "attention"],
)
def test_chance(forward):
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="expected a deterministic network"):
        ah.layerwise_alignment(network(forward), inputs(6, 5), Y)
    torch.set_rng_state(before)


CALLS = []  # a global one, which no twin of a model copies


def attention(h, p):
    h = h.view(len(h), 1, 3, 2)
    return functional.scaled_dot_product_attention(h, h, h, dropout_p=p).flatten(1)


@pytest.mark.parametrize("p", [0, 0.0])
def test_no_chance(p):
    """An operation that could draw random numbers, and does not, is not called 32 times."""
    before = len(CALLS)
    model = network(lambda model, x: CALLS.append(0) or model.last(attention(model.first(x), p)))
    ah.layerwise_alignment(model, inputs(6, 5), Y, certify=1)
    assert 1 <= len(CALLS) - before <= 4


def test_sentences():
    model, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = ah.layerwise_alignment(model, x, Y).cka
    assert torch.allclose(under_autocast, ah.layerwise_alignment(model, x, Y).cka, rtol=0.02)
    squeezed = Network(lambda model, x: model.last(torch.tanh(model.first(x))).squeeze())
    assert len(ah.layerwise_alignment(squeezed, x, Y)) == 2
    for n in (1, 2):
        with pytest.raises(ValueError, match=r"\.squeeze\(\) without a dimension"):
            ah.layerwise_alignment(squeezed, x[:n], Y[:n])
    whole = Network(lambda model, x: model.last(model.first(x)).argmax(1, keepdim=True))
    with pytest.raises(ValueError, match=r"floating-point outputs, got dtype torch\.int64"):
        ah.layerwise_alignment(whole, x, torch.randn(6, 1))


# ---- the model is left alone


def test_threads_on_one_model():
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(40, 5)
    y, types = torch.arange(40) % 3, [type(p) for p in model.parameters()]
    expected, errors = ah.layerwise_alignment(model, x, y).cka, []

    def work() -> None:
        try:
            for _ in range(20):
                assert torch.equal(ah.layerwise_alignment(model, x, y).cka, expected)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [type(p) for p in model.parameters()] == types


def test_attributes_that_forward_stores():
    class Storing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.w = nn.Linear(5, 4), nn.Parameter(torch.randn(4, 3))
            self.last, self.calls, self.seen = None, 0, []

        def forward(self, x):
            h = self.first(x)
            self.last, self.calls = (h @ self.w).detach(), self.calls + 1
            self.seen.append(h)
            return h @ self.w

    model = Storing()
    model(torch.randn(2, 5))
    model.seen.clear()
    before, state = model.last, {name: id(value) for name, value in vars(model).items()}
    ah.layerwise_alignment(model, torch.randn(6, 5), Y)
    assert model.last is before and model.calls == 1 and model.seen == []
    assert {name: id(value) for name, value in vars(model).items()} == state
    assert float(model.last.sum()) == float(before.sum())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_old_weight_norm_deepcopy_and_pickle_afterwards():
    model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)).double()
    x = inputs(6, 5)
    expected = model(x).detach()
    ah.layerwise_alignment(model, x, Y)
    assert torch.equal(model(x), expected)
    plain = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    expected = plain(x).detach()
    ah.layerwise_alignment(plain, x, Y)
    for again in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert torch.equal(again(x), expected)
    assert not plain[0]._forward_hooks and not plain[0]._forward_pre_hooks and "forward" not in vars(plain[0])


def test_alignments_are_at_most_one_and_kernels_add_up():
    for seed in range(50):
        torch.manual_seed(seed)
        x = torch.randn(12, 1)
        assert ah.layerwise_alignment(nn.Linear(1, 1, bias=False), x, x)["(root)"] <= 1
    kernels = ah.tangent_kernels(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double(), inputs(6, 5))
    whole = sum(kernels.values())
    torch.testing.assert_close(whole.to_dense(), kernels["0"].to_dense() + kernels["2"].to_dense())
    assert float(ah.similarity(kernels).max()) <= 1


@pytest.mark.parametrize("hook", [lambda g: 2 * g, lambda g: g.clamp(-0.1, 0.1), lambda g: g * 0])
@pytest.mark.parametrize("certify", [0, 1])
def test_hooks_on_gradients_are_for_training(hook, certify):
    """Gradient clipping and masks change no kernel, and are not called."""
    model, x, before = network(lambda model, x: model.last(torch.tanh(model.first(x)))), inputs(6, 5), len(CALLS)
    expected = {name: kernel.to_dense() for name, kernel in ah.tangent_kernels(model, x).items()}

    def counted(g):
        CALLS.append(0)
        return hook(g)

    for parameter in model.parameters():
        parameter.register_hook(counted)
    with pytest.warns(UserWarning, match="hooks on the gradients of parameters are not called"):
        found = ah.tangent_kernels(model, x, certify=certify)
    for name, kernel in found.items():
        assert torch.equal(kernel.to_dense(), expected[name])
    assert len(CALLS) == before and all(len(p._backward_hooks) == 1 for p in model.parameters())
