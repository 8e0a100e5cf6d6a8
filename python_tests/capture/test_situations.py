"""More situations of the kinds that users reported: a measurement is right, or refused in a sentence that says why.

Each section has one kind. The right kernel is that of plain autograd, one sample and one output after the other. The
model must be as before in each situation. The last section has networks that keep to the rules, and are measured.
"""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import random
import re
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as globally
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import ahkernels as ah

REFUSALS = (ValueError, RuntimeError)
D = torch.float64


def kernel_one_by_one(model: nn.Module, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """K [n*o, n*o] of some parameters in float64, trained or not, by plain autograd."""
    flags = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_()
    rows = []
    for sample in x:
        for value in model(sample[None])[0]:
            if value.requires_grad:
                found = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
            else:
                found = [torch.zeros_like(p) for p in parameters]
            rows.append(torch.cat([g.to_dense().flatten().double() for g in found]))
    for p, flag in zip(parameters, flags, strict=True):
        p.requires_grad_(flag)
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Checks that the model and the states of random numbers are afterwards what they were before."""

    def objects() -> dict[str, object]:
        found: dict[str, object] = {}
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                found[f"{path}.{name}"] = value
                if isinstance(value, dict):
                    found |= {f"{path}.{name}[{key!r}]": one for key, one in value.items()}
                elif isinstance(value, (list, tuple, collections.deque)):
                    found |= {f"{path}.{name}[{index}]": one for index, one in enumerate(value)}
        return found

    def tensors() -> dict[str, Tensor]:
        found = {f"parameter {name}": p.detach().clone() for name, p in model.named_parameters()}
        found |= {f"buffer {name}": b.detach().clone() for name, b in model.named_buffers()}
        found |= {f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        for path, module in model.named_modules():
            found |= {f"{path}.{name}": v.detach().clone() for name, v in vars(module).items() if torch.is_tensor(v)}
        found["torch"] = torch.get_rng_state()
        found["numpy"] = torch.from_numpy(np.random.get_state()[1].astype(np.int64))  # noqa: NPY002
        return found

    def plain_values() -> list[object]:
        return [[p.requires_grad for p in model.parameters()], random.getstate()]

    before, values, others = objects(), tensors(), plain_values()
    try:
        yield
    finally:
        after, now = objects(), tensors()
        changed = [name for name in sorted(before | after) if before.get(name, model) is not after.get(name, model)]
        assert not changed, f"the model was changed: {changed}"
        changed = sorted(set(values) ^ set(now))
        changed += [
            name for name in values if name in now and not torch.equal(values[name].to_dense(), now[name].to_dense())
        ]
        assert not changed, f"the model was changed: {changed}"
        assert plain_values() == others, "the random numbers of Python or requires_grad were changed"


def distance(found: Tensor, expected: Tensor) -> float:
    """How far kernels are apart, relative to the norm of the second one."""
    norm = float(expected.norm())
    return float((found.double() - expected).norm()) / (norm or 1.0)


def assert_right(model: nn.Module, x: Tensor, *layers: str, rtol: float = 1e-9) -> None:
    """Checks the kernels of some layers, or of all, and that alignments are measured."""
    paths = dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters())
    names = layers or tuple(path or "(root)" for path in paths)
    expected = {}
    for name in names:
        module = model if name == "(root)" else model.get_submodule(name)
        expected[name] = kernel_one_by_one(model, x, list(module.parameters(recurse=False)))
    with left_alone(model):
        found = ah.tangent_kernels(model, x, layers=layers or None)
    for name in names:
        off = distance(found[name].to_dense(), expected[name])
        assert off <= rtol, f"the kernel of {name!r} is off by {off:.1e}"


def assert_refused(model: nn.Module, x: Tensor, match: str) -> None:
    """Checks that a measurement is refused in a single sentence with certain words in it."""
    with left_alone(model), pytest.raises(REFUSALS) as caught:
        ah.tangent_kernels(model, x)
    message = str(caught.value)
    assert re.search(match, message) and "\n" not in message.strip(), message


def assert_right_or_refused(model: nn.Module, x: Tensor, match: str, *layers: str, rtol: float = 1e-9) -> None:
    """Checks that a measurement is right, or refused in a single sentence with certain words in it."""
    try:
        assert_right(model, x, *layers, rtol=rtol)
    except REFUSALS as error:
        assert re.search(match, str(error)) and "\n" not in str(error).strip(), repr(error)


class Network(nn.Module):
    """Two layers, with a forward that a test gives."""

    def __init__(self, forward: Callable[..., object], hidden: int = 6, outputs: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, hidden), nn.Linear(hidden, outputs)
        self.run = forward

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def network(forward: Callable[..., object], outputs: int = 3) -> Network:
    return Network(forward, outputs=outputs).double()


def plain(model: Network, x: Tensor) -> Tensor:
    return model.last(torch.tanh(model.first(x)))


def sequential(dtype: torch.dtype = D) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=D)


# ---- 1. derivatives in the forward pass


def laplacian(model: Network, x: Tensor) -> Tensor:
    """A residual of Poisson's equation, of second derivatives."""
    x = x.clone().requires_grad_()
    u = plain(model, x).sum(1)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    second = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)]
    return torch.stack([u, *second], 1)


def hamiltonian(model: Network, x: Tensor) -> Tensor:
    """A vector field that is the gradient of an energy, by torch.func."""
    return torch.func.vmap(torch.func.grad(lambda one: plain(model, one).square().sum()))(x)[:, :3]


def directional(model: Network, x: Tensor) -> Tensor:
    """A network beside its derivative in one direction, in forward mode."""
    value, slope = torch.func.jvp(lambda z: plain(model, z), (x,), (torch.ones_like(x),))
    return value + slope


def fast_weights(model: Network, x: Tensor) -> Tensor:
    """For each sample the last layer takes a gradient step of its own first, as in MAML."""
    found = []
    for one in x:
        h = torch.tanh(model.first(one))
        loss = functional.linear(h, model.last.weight, model.last.bias).square().sum()
        (slope,) = torch.autograd.grad(loss, model.last.weight, create_graph=True)
        found.append(functional.linear(h, model.last.weight - 0.1 * slope, model.last.bias))
    return torch.stack(found)


@pytest.mark.parametrize("forward", [laplacian, hamiltonian, directional, fast_weights])
def test_derivatives_in_forward(forward):
    assert_right(network(forward), inputs(6, 5), "first", "last")


def test_a_backward_pass_in_forward_leaves_gradients_alone():
    """Saliency as a feature; users write backward() and take x.grad."""

    def saliency(model, x):
        x = x.detach().clone().requires_grad_()
        plain(model, x).sum().backward()
        return plain(model, x * (1 + x.grad))

    model, x = network(saliency), inputs(6, 5)
    expected = {name: kernel_one_by_one(model, x, list(model.get_submodule(name).parameters())) for name in ("first",)}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with left_alone(model):
        try:
            found = ah.tangent_kernels(model, x)
        except REFUSALS as error:
            assert "backward" in str(error)
        else:
            assert distance(found["first"].to_dense(), expected["first"]) <= 1e-9


# ---- 2. samples in another order on the way


def test_any_two_samples_swapped_around_a_layer():
    """A batch that is sorted by length before a layer and back after it, where only two samples were out of order."""
    model, x, wrong = network(plain), inputs(6, 5), []
    expected = kernel_one_by_one(model, x, list(model.first.parameters()))
    for i, j in itertools.combinations(range(6), 2):

        def swapped(model, x, i=i, j=j):
            order = torch.arange(len(x))
            if len(x) == 6:
                order[i], order[j] = j, i
            return model.last(torch.tanh(model.first(x[order]))[order.argsort()])

        model.run = swapped
        if distance(ah.tangent_kernels(model, x)["first"].to_dense(), expected) > 1e-9:
            wrong.append((i, j))
    assert not wrong


def sorted_by_length(model: Network, x: Tensor) -> Tensor:
    order = (x > 0).sum(1).argsort(descending=True, stable=True)
    h = torch.tanh(model.first(x[order]))
    return model.last(torch.empty_like(h).index_copy(0, order, h))


def two_streams(model: Network, x: Tensor) -> Tensor:
    """Siamese halves, concatenated along the samples and called once."""
    both = model.first(torch.cat([x, x.flip(1)]))
    return model.last(torch.tanh(both[: len(x)]) * torch.tanh(both[len(x) :]))


def last_to_first(model: Network, x: Tensor) -> Tensor:
    return torch.stack([model.last(torch.tanh(model.first(one))) for one in reversed(list(x))]).flip(0)


def features_first(model: Network, x: Tensor) -> Tensor:
    """As einops users have it: "n d -> d n" and back, where n may be that of the features."""
    h = torch.einsum("oi,in->on", model.first.weight, x.T) + model.first.bias[:, None]
    return model.last(torch.tanh(h.T))


@pytest.mark.parametrize("forward", [sorted_by_length, two_streams, last_to_first, features_first])
@pytest.mark.parametrize("n", [5, 6])
def test_samples_in_another_order(forward, n):
    assert_right(network(forward), inputs(n, 5), "first", "last")


class Wide(nn.Module):
    """So wide that a few samples fill a chunk; what the layer is called with is up to a test."""

    def __init__(self, change: Callable[[Tensor], tuple[Tensor, Tensor | None]]) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(1, 60_000, bias=False), change
        nn.init.normal_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        z, order = self.change(x)
        h = torch.tanh(self.layer(z))
        h = h if order is None else h[order]
        return h.unflatten(1, (5, 12_000)).mean(2)


def the_last_two_swapped(x: Tensor) -> tuple[Tensor, Tensor | None]:
    if len(x) < 2:
        return x, None
    order = torch.arange(len(x))
    order[-2:] = order[-2:].flip(0)
    large = (x[order] > 3).any()  # in some chunks only
    return (x[order], order) if large else (x, None)


def test_samples_in_another_order_late_in_x():
    x = inputs(24, 1).clamp(-2, 2)
    x[-1] = 4.0
    assert_right(Wide(the_last_two_swapped).double(), x, "layer")


@pytest.mark.parametrize("n", [1, 2, 6])
def test_a_table_that_is_as_long_as_the_batch(n):
    """A layer is called with positions, whose number happens to be that of samples."""

    def positions(model, x):
        table = torch.tanh(model.first(torch.eye(n, 5, dtype=x.dtype)))  # [positions, 6]
        return model.last(torch.einsum("np,pd->nd", torch.sin(torch.arange(1.0, n + 1) * x[:, :1]), table))

    assert_right(network(positions), inputs(n, 5), "first", "last")


# ---- 3. patched forward


@pytest.mark.parametrize("special", range(6))
def test_a_patched_forward_that_acts_on_outliers_alone(special):
    """A quantiser that clips; one sample has an outlier, and it can be any of them."""
    model, x = sequential(), inputs(6, 5).clamp(-2, 2)
    x[special, 0] = 5.0
    layer = model[0]
    layer.forward = lambda h: functional.linear(h.clamp(-3, 3), layer.weight, layer.bias)
    assert_right(model, x, "0", "2")


def test_a_patched_forward_that_acts_on_outliers_late_in_x():
    model, x = Wide(lambda x: (x, None)).double(), inputs(24, 1).clamp(-2, 2)
    x[20] = 5.0
    layer = model.layer
    layer.forward = lambda h: functional.linear(h.clamp(-3, 3), layer.weight)
    assert_right(model, x, "layer")


def test_the_forward_of_a_class_patched(monkeypatch):
    def clipped(self, h):
        return functional.linear(h.clamp(-1, 1), self.weight, self.bias)

    monkeypatch.setattr(nn.Linear, "forward", clipped)
    assert_right(sequential(), inputs(6, 5), "0", "2")


def test_a_patched_forward_in_half_precision():
    """Features scaled by up to 8 %, which half precision does not excuse."""
    torch.manual_seed(0)  # one of 39 seeds in 40 whose v shows it among so few samples
    model, x = sequential(torch.bfloat16), torch.randn(6, 5).bfloat16()
    layer, scale = model[0], torch.linspace(1, 1.16, 5).bfloat16()
    layer.forward = lambda h: functional.linear(h * scale, layer.weight, layer.bias)
    assert_right(model, x, "0", rtol=0.02)


@pytest.mark.parametrize("n", [6, 40])
@pytest.mark.parametrize("dtype", [D, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_patched_forward_that_holds_its_module_by_a_global_name(dtype, n):
    """As in a script, where a function refers to the model's own layer by no closure."""
    model, x = sequential(dtype), torch.randn(n, 5).to(dtype)
    names = {"functional": functional, "layer": model[0]}
    exec("def forward(h): return functional.linear(1.5 * h, layer.weight, layer.bias)", names)
    model[0].forward = names["forward"]
    assert_right(model, x, rtol=0.02 if dtype in (torch.float16, torch.bfloat16) else 1e-6)


def test_a_patched_method_and_a_partial():
    def doubled(self, h):
        return functional.linear(2 * h, self.weight, self.bias)

    model = sequential()
    model[0].forward = types.MethodType(doubled, model[0])
    model[2].forward = functools.partial(doubled, model[2])
    assert_right(model, inputs(6, 5), "0", "2")


def with_lora(frozen: bool) -> nn.Module:
    """A low-rank update injected by patching; the base keeps its bound forward."""
    model = sequential()
    base, down, up = model[0], nn.Linear(5, 2, bias=False).double(), nn.Linear(2, 6, bias=False).double()
    before = base.forward
    base.forward = lambda h: before(h) + up(down(h))
    base.lora = nn.ModuleList([down, up])
    base.weight.requires_grad_(not frozen)
    base.bias.requires_grad_(not frozen)
    return model


def test_lora_by_patching():
    assert_right(with_lora(False), inputs(6, 5), "0", "0.lora.0", "0.lora.1", "2")


def test_lora_by_patching_over_a_frozen_base():
    model, x = with_lora(True), inputs(6, 5)
    assert_right(model, x, "0.lora.0", "0.lora.1", "2")
    try:
        assert_right(model, x, "0")
    except (*REFUSALS, UserWarning) as error:  # the base is reached by nothing but the old bound method
        assert "requires_grad" in str(error)


# ---- 4. global hooks, and other ways to change what a module gives


@contextmanager
def removed(handle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def test_global_hooks_that_act_on_some_samples():
    def clip(module, args, output):
        return output.clamp(-0.5, 0.5) if isinstance(module, nn.Linear) and output.shape[-1] == 6 else None

    with removed(globally.register_module_forward_hook(clip)):
        assert_right(sequential(), inputs(6, 5), "0", "2")


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_global_backward_hooks():
    """What autograd gives is the kernel, also where hooks change gradients on their way."""

    def half(module, gradient):
        return tuple(g / 2 for g in gradient) if isinstance(module, nn.Linear) else None

    with removed(globally.register_module_full_backward_pre_hook(half)):
        assert_right(sequential(), inputs(6, 5), "0", "2")


def test_hooks_on_tensors_in_forward():
    def reversing(model, x):
        """The gradient reversal of domain-adversarial networks, by a hook."""
        h = torch.tanh(model.first(x))
        h.register_hook(lambda g: -0.3 * g)
        return model.last(h)

    assert_right(network(reversing), inputs(6, 5), "first", "last")


def test_hooks_on_parameters():
    """Hooks on gradients are for training: kernels are those of the outputs' own gradients, and a warning says so."""
    model, other = sequential(), sequential()
    other.load_state_dict(model.state_dict())
    x, mask = inputs(6, 5), (torch.rand(6, 5) > 0.5).double()
    other[0].weight.register_hook(lambda g: g * mask)
    expected = ah.tangent_kernels(model, x)
    with left_alone(other), pytest.warns(UserWarning, match=r"hooks on the gradients .* \(of '0\.weight'\)") as told:
        found = ah.tangent_kernels(other, x)
    assert [one.filename for one in told] == [__file__]
    for name, kernel in found.items():
        torch.testing.assert_close(kernel.to_dense(), expected[name].to_dense(), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ah.tangent_kernels(other, x, layers=["2"])


def test_hooks_with_keywords():
    model = network(lambda model, x: model.last(input=torch.tanh(model.first(input=x))))
    model.first.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {"input": kwargs["input"].clamp(-1, 1)}), with_kwargs=True
    )
    model.last.register_forward_hook(
        lambda module, args, kwargs, output: output * kwargs["input"][:, :3], with_kwargs=True
    )
    assert_right(model, inputs(6, 5), "first", "last")


class Clipping(TorchFunctionMode):
    """Changes what torch.nn.functional.linear takes, as tools for quantisation do."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.linear:
            args = (args[0].clamp(-3, 3), *args[1:])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("special", range(6))
def test_modes_that_change_functions(special):
    x = inputs(6, 5).clamp(-2, 2)
    x[special, 0] = 5.0
    with Clipping():
        assert_right(sequential(), x, "0", "2")


@contextmanager
def setting(change: Callable[[object], None], value: object, before: object) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(before)


SETTINGS = {
    "default dtype": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "half default dtype": lambda: setting(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "one thread": lambda: torch.autograd.set_multithreading_enabled(False),
    "no gradients": torch.no_grad,
    "saved elsewhere": torch.autograd.graph.save_on_cpu,
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize("name", list(SETTINGS))
def test_settings_of_the_caller(name):
    """A layer with a rule and one without, under what users set for their own programs."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 6), nn.PReLU(6), nn.Linear(6, 3)), torch.randn(6, 5)
    expected = {name: kernel.to_dense() for name, kernel in ah.tangent_kernels(model, x).items()}
    with SETTINGS[name](), left_alone(model):
        found = ah.tangent_kernels(model, x)
    for layer, kernel in expected.items():
        assert distance(found[layer].to_dense(), kernel.double()) <= 1e-5


# ---- 5. samples that act on one another


def quantised(model: Network, x: Tensor) -> Tensor:
    """Activations in 8 bits with one scale for the batch, and gradients that go straight through."""
    scale = x.abs().max() / 7
    return plain(model, x + ((x / scale).round() * scale - x).detach())


def by_the_largest(model: Network, x: Tensor) -> Tensor:
    return plain(model, x / x.abs().max())


def adaptive_solver(model: Network, x: Tensor) -> Tensor:
    """A neural ODE whose step is chosen by the stiffest sample of the batch."""
    steps = 1 + int(x.abs().max())
    h = torch.tanh(model.first(x))
    for _ in range(steps):
        h = h - h.pow(3) / steps
    return model.last(h)


@pytest.mark.parametrize("forward", [quantised, by_the_largest, adaptive_solver])
@pytest.mark.parametrize("special", [0, 1, 2, 5, 18])
def test_one_sample_acts_on_all_others(forward, special):
    """One outlier decides for the batch; the others do not change a thing."""
    x = inputs(20, 5).clamp(-1.5, 1.5)
    x[special, 0] = 6.3
    assert_refused(network(forward), x, "samples act on one another|depend on their own sample")


def within_capacity(model: Network, x: Tensor) -> Tensor:
    """An expert that takes 20 samples; those that come later are dropped."""
    taken = torch.arange(len(x)) < 20
    return plain(model, x) * taken[:, None]


def a_negative_of_the_batch(model: Network, x: Tensor) -> Tensor:
    """Each sample is set against the sample 17 places before."""
    h = torch.tanh(model.first(x))
    return model.last(torch.cat([h[:17], h[17:] - h[: max(0, len(h) - 17)]])) if len(h) > 17 else model.last(h)


@pytest.mark.parametrize("forward", [within_capacity, a_negative_of_the_batch])
def test_samples_act_on_one_another_in_large_batches_alone(forward):
    assert_refused(network(forward), inputs(40, 5), "samples act on one another|depend on their own sample")


def test_values_of_a_sample_alone_with_gradients_of_the_batch():
    """Centered over the batch, with the mean given back without its gradient: f(x) is that of each sample alone."""

    def contrastive(model, x):
        h = torch.tanh(model.first(x))
        return model.last(h - h.mean(0) + h.mean(0).detach())

    assert_refused(network(contrastive), inputs(6, 5), "samples act on one another|depend on their own sample")


def test_samples_act_on_one_another_in_a_small_output():
    """An energy in large units stands beside an output that is normalised over the batch."""

    def two_units(model, x):
        y = plain(model, x)
        return torch.cat([1e9 * y[:, :1], plain(model, x / x.std(0, correction=0).add(1))[:, 1:]], 1)

    model, x = Network(two_units), torch.randn(16, 5)
    assert_refused(model, x, "samples act on one another|depend on their own sample")


def test_recurrent_networks_that_take_the_samples_for_time():
    """The batch_first that was forgotten."""

    class Forgotten(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.last = nn.GRU(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.last(self.cells(x)[0][:, -1])

    assert_refused(Forgotten().double(), inputs(6, 3, 4), "samples act on one another|depend on their own sample")


def test_a_solver_that_stops_for_the_whole_batch():
    def equilibrium(model, x):
        z = torch.zeros(len(x), 6, dtype=x.dtype)
        for _ in range(50):
            new = torch.tanh(model.first(x) + 0.5 * z)
            if (new - z).norm() < 1e-3:
                break
            z = new
        return model.last(z)

    assert_refused(network(equilibrium), 0.3 * inputs(6, 5) * torch.arange(6)[:, None], "depend on their own sample")


# ---- 6. chance


def skipped_at_times(model: Network, x: Tensor) -> Tensor:
    h = torch.tanh(model.first(x))
    return model.last(h if random.random() < 0.9 else 0 * h)


def noise_of_numpy(model: Network, x: Tensor) -> Tensor:
    noise = torch.from_numpy(np.random.randn(*x.shape))  # noqa: NPY002
    return plain(model, x + 0.1 * noise)


def gumbel(model: Network, x: Tensor) -> Tensor:
    return model.last(functional.gumbel_softmax(model.first(x), hard=True))


def noise_in_a_small_output(model: Network, x: Tensor) -> Tensor:
    y = plain(model, x)
    return torch.cat([1e12 * y[:, :1], y[:, 1:] * (1 + 0.1 * torch.randn_like(y[:, 1:]))], 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("forward", [skipped_at_times, noise_of_numpy, gumbel, noise_in_a_small_output])
def test_chance_of_other_kinds(forward, seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    assert_refused(network(forward), inputs(6, 5), "deterministic")


def test_chance_from_a_generator_that_the_model_has():
    model = network(lambda model, x: plain(model, x + torch.randn(x.shape, generator=model.chance, dtype=x.dtype)))
    model.chance = torch.Generator().manual_seed(3)
    before = model.chance.get_state()
    assert_refused(model, inputs(6, 5), "deterministic")
    assert torch.equal(model.chance.get_state(), before)


# ---- 7. threads and interruptions


def test_threads_on_models_that_share_a_backbone():
    backbone, x, y = nn.Linear(5, 8), torch.randn(30, 5), torch.arange(30) % 3
    models = [nn.Sequential(backbone, nn.Tanh(), nn.Linear(8, 3)) for _ in range(3)]
    backbone.weight.requires_grad_(False)
    expected, errors = [ah.layerwise_alignment(model, x, y).cka for model in models], []

    def work(model, right):
        try:
            for _ in range(10):
                assert torch.equal(ah.layerwise_alignment(model, x, y).cka, right)
        except BaseException as error:
            errors.append(error)

    filters = list(warnings.filters)
    threads = [threading.Thread(target=work, args=pair) for pair in zip(models, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and not backbone.weight.requires_grad and type(backbone.weight) is nn.Parameter
    assert warnings.filters == filters


def test_random_numbers_of_another_thread_do_not_repeat():
    """A thread measures while this one draws what training needs."""
    model, x, stop = sequential(torch.float32), torch.randn(20, 5), threading.Event()

    def work():
        while not stop.is_set():
            ah.tangent_kernels(model, x)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        drawn = [float(torch.rand(1, dtype=D)) for _ in range(20_000)]
    finally:
        stop.set()
        thread.join()
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, MemoryError])
def test_interruptions_at_any_call(interruption):
    model, x = sequential(), inputs(6, 5)
    model[0].requires_grad_(False)
    model[2].weight.grad = torch.ones_like(model[2].weight)
    expected, calls = ah.tangent_kernels(model, x)["0"].to_dense(), itertools.count()
    at = -1

    def interrupt(module, args):
        if next(calls) == at:
            raise interruption

    model[2].register_forward_pre_hook(interrupt)
    while at < 20:
        at, calls = at + 1, itertools.count()
        with left_alone(model):
            try:
                found = ah.tangent_kernels(model, x)
            except interruption:
                continue
        assert torch.equal(found["0"].to_dense(), expected)
        break
    assert 1 < at < 20


def test_an_interruption_in_the_backward_pass():
    class Interrupted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise KeyboardInterrupt

    model, x = network(lambda model, x: model.last(Interrupted.apply(torch.tanh(model.first(x))))), inputs(6, 5)
    with left_alone(model), pytest.raises(KeyboardInterrupt):
        ah.tangent_kernels(model, x)


# ---- 8. state that forward keeps


class Cache:
    """Keys of calls before, as language models keep them."""

    def __init__(self):
        self.keys, self.length = [], 0

    def update(self, h):
        self.keys.append(h.detach())
        self.length += len(h)


@dataclass
class Statistics:
    mean: float = 0.0
    calls: int = 0


def with_a_cache(model, h):
    model.kept.update(h)


def with_a_dataclass(model, h):
    model.kept.mean, model.kept.calls = float(h.detach().mean()), model.kept.calls + 1


def with_a_namespace(model, h):
    model.kept.last = h.detach()


def with_a_counter(model, h):
    model.kept["calls"] += 1


def with_an_array(model, h):
    model.kept[0] += float(h.detach().sum())


STATES = {
    "cache": (Cache, with_a_cache, lambda kept: (len(kept.keys), kept.length)),
    "dataclass": (Statistics, with_a_dataclass, lambda kept: (kept.mean, kept.calls)),
    "namespace": (lambda: types.SimpleNamespace(last=None), with_a_namespace, lambda kept: kept.last is None),
    "counter": (collections.Counter, with_a_counter, lambda kept: dict(kept)),
    "array": (lambda: np.zeros(3), with_an_array, lambda kept: kept.tolist()),
}


@pytest.mark.parametrize("name", list(STATES))
def test_objects_that_forward_changes(name):
    make, keep, reading = STATES[name]

    def keeping(model, x):
        h = torch.tanh(model.first(x))
        keep(model, h)
        return model.last(h)

    model, x = network(keeping), inputs(6, 5)
    model.kept = make()
    before = reading(model.kept)
    with left_alone(model):
        ah.layerwise_alignment(model, x, torch.arange(6) % 3)
    assert reading(model.kept) == before


def test_what_a_closure_over_the_model_stores():
    class Closing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.seen = nn.Linear(5, 6), nn.Linear(6, 3), None
            self.block = lambda x: self.remember(self.first(x))

        def remember(self, h):
            self.seen = h
            return torch.tanh(h)

        def forward(self, x):
            return self.last(self.block(x))

    assert_right_or_refused(Closing().double(), inputs(6, 5), "closure|lambda", "first", "last")


def test_what_a_hook_stores_at_the_model():
    model = network(plain)
    model.features = None
    model.first.register_forward_hook(lambda module, args, output: setattr(model, "features", output.detach()))
    x = inputs(6, 5)
    with left_alone(model):
        found = ah.tangent_kernels(model, x)
    assert model.features is None
    model.first._forward_hooks.clear()
    assert distance(found["first"].to_dense(), kernel_one_by_one(model, x, list(model.first.parameters()))) < 1e-9


def test_state_that_changes_outputs():
    """A network that warms up: its outputs depend on how often it was called. The kernel is that of the next call."""

    def warming(model, x):
        model.kept.calls += 1
        return plain(model, x) * model.kept.calls

    model, x = network(warming), inputs(6, 5)
    model.kept = Statistics()
    model.run = plain
    expected = kernel_one_by_one(model, x, list(model.first.parameters()))
    model.run = warming
    with left_alone(model):
        try:
            found = ah.tangent_kernels(model, x)["first"].to_dense()
        except REFUSALS as error:
            assert re.search("state|deterministic|differ between two calls", str(error)), error
        else:
            assert distance(found, expected) <= 1e-9
    assert model.kept.calls == 0


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("normalise", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_spectral_norms_in_training_mode(normalise):
    """Each call in training mode takes a step of a power iteration; in eval mode none does."""
    model, x = nn.Sequential(normalise(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 3)).double(), inputs(6, 5)
    with torch.no_grad():
        again = copy.deepcopy(model)
        again(x)
    expected = kernel_one_by_one(again.eval(), x, list(again[2].parameters()))
    with left_alone(model):
        try:
            found = ah.tangent_kernels(model, x, layers="2")["2"].to_dense()
        except REFUSALS as error:
            assert re.search("spectral|eval", str(error)), error
        else:
            assert distance(found, expected) <= 1e-9
    copied = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(copied(x), model(x))
    assert_right(model.eval(), x, "2")


# ---- 9. numbers that are out of their range


def kernels_and_their_sum(seed: int, dtype: torch.dtype) -> list[ah.TangentKernel]:
    """Kernels of rank one or two, and nearly so."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 2, bias=False)).to(dtype)
    kernels = ah.tangent_kernels(model, torch.randn(9, 2, dtype=dtype))
    return [*kernels.values(), sum(kernels.values())]


RANGES = {
    "eigenvalues": (lambda kernel, y: ah.eigenvalues(kernel, k=18).min(), 0, float("inf")),
    "a few eigenvalues": (lambda kernel, y: ah.eigenvalues(kernel, k=6).min(), 0, float("inf")),
    "alignment": (lambda kernel, y: ah.cka(kernel, y), 0, 1),
    "alignment with itself": (lambda kernel, y: ah.cka(kernel, kernel), 1 - 1e-5, 1),
    "alignment per output": (lambda kernel, y: ah.cka(kernel, y, centering="per_output"), 0, 1),
    "stable rank": (lambda kernel, y: ah.stable_rank(kernel), 1, 18),
    "label correlation": (lambda kernel, y: ah.label_correlation(kernel, y), -1, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
@pytest.mark.parametrize("name", list(RANGES))
def test_numbers_keep_to_their_ranges(name, dtype):
    statistic, least, most = RANGES[name]
    for seed in range(12):
        for kernel in kernels_and_their_sum(seed, dtype):
            value = float(statistic(kernel, torch.arange(9) % 2))
            assert least <= value <= most, (seed, value)


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_similarities_keep_to_their_range(dtype):
    for seed in range(12):
        similar = ah.similarity({str(i): kernel for i, kernel in enumerate(kernels_and_their_sum(seed, dtype))})
        assert float(similar.min()) >= 0 and float(similar.max()) <= 1


@pytest.mark.parametrize("centering", ["global", "per_output"])
def test_perfect_alignments_are_at_most_one(centering):
    """Targets that are the network's own directions."""
    for seed in range(40):
        torch.manual_seed(seed)
        x = torch.randn(10, 1) * 10.0 ** (seed % 7 - 3)
        report = ah.layerwise_alignment(nn.Linear(1, 1, bias=False), x, 3 * x, centering=centering)
        assert 1 - 1e-5 <= report["(root)"] <= 1


def test_groups_and_sums_agree():
    model, x = sequential(), inputs(6, 5)
    kernels = ah.tangent_kernels(model, x)
    whole = ah.tangent_kernels(model, x, layers={"all": "*"})["all"]
    assert distance(sum(kernels.values()).to_dense(), whole.to_dense()) <= 1e-12
    assert sum(kernels.values()).trace() == pytest.approx(sum(k.trace() for k in kernels.values()))


# ---- 10. tensors of inference mode


def test_labels_and_vectors_of_inference_mode():
    model, x = sequential(), inputs(6, 5)
    with torch.inference_mode():
        y, targets, v = torch.arange(6) % 3, inputs(6, 3), inputs(18, 2)
    kernel = ah.tangent_kernels(model, x)["0"]
    assert ah.cka(kernel, y) == ah.cka(kernel, y.clone())
    assert torch.equal(kernel @ v, kernel @ v.clone())
    report = ah.layerwise_alignment(model, x, targets)
    with torch.inference_mode():
        inside = ah.layerwise_alignment(model, x, targets)
        dense = ah.tangent_kernels(model, x)["0"].to_dense()
    assert torch.equal(report.cka, inside.cka) and torch.equal(dense, kernel.to_dense())


def test_statistics_and_constants_of_inference_mode():
    """A checkpoint that was loaded under inference mode, with a table among its attributes and another in a closure."""
    x = inputs(6, 5)
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
        model[1].running_mean.normal_()
        model.table = [torch.rand(3, dtype=D)]
    trained = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
    trained.load_state_dict(model.state_dict())
    trained.table = [model.table[0].clone()]
    found = ah.tangent_kernels(model, x)
    for name, kernel in ah.tangent_kernels(trained, x).items():
        assert distance(found[name].to_dense(), kernel.to_dense()) <= 1e-12
    model.run = types.MethodType(lambda self, x: nn.Sequential.forward(self, x) * self.table[0], model)
    model.forward = model.run
    trained.forward = lambda x: nn.Sequential.forward(trained, x) * trained.table[0]
    expected = kernel_one_by_one(trained, x, list(trained[0].parameters()))
    assert distance(ah.tangent_kernels(model, x)["0"].to_dense(), expected) <= 1e-9


def test_a_constant_of_inference_mode_in_a_closure():
    with torch.inference_mode():
        table = torch.rand(3, dtype=D)
    model, x = network(lambda model, x: plain(model, x) * table), inputs(6, 5)
    with left_alone(model):
        try:
            found = ah.tangent_kernels(model, x)["first"].to_dense()
        except REFUSALS as error:
            assert re.search("[Ii]nference", str(error)), error
            return
    model.run = lambda model, x: plain(model, x) * table.clone()
    assert distance(found, kernel_one_by_one(model, x, list(model.first.parameters()))) <= 1e-9


# ---- 11. autocast


def within_autocast(model: Network, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        h = torch.tanh(model.first(x))
        return model.last(h).float()


def half_of_it_in_autocast(model: Network, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        h = model.first(x)
    return model.last(torch.tanh(h.float()))


@torch.autocast("cpu", torch.bfloat16)
def decorated(model: Network, x: Tensor) -> Tensor:
    return plain(model, x)


@pytest.mark.parametrize("forward", [within_autocast, half_of_it_in_autocast, decorated])
def test_autocast_in_forward(forward):
    """The kernel is that of the network as it computes, up to its precision."""
    assert_right_or_refused(Network(forward), torch.randn(6, 5), "autocast", "first", "last", rtol=0.03)


def test_autocast_that_is_off_or_for_another_device():
    model, x = sequential(torch.float32), torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert_right(model, x, "0", "2", rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a machine without such a device
        other = torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else nullcontext()
    with other:
        assert_right(model, x, "0", "2", rtol=1e-5)


def test_trackers_under_autocast():
    model, x, y = sequential(torch.float32), torch.randn(6, 5), torch.arange(6) % 3
    tracker = ah.AlignmentTracker(model, x, y)
    expected = ah.layerwise_alignment(model, x, y).cka
    with torch.autocast("cpu", torch.bfloat16), left_alone(model):
        assert distance(tracker.update(0).report.cka, expected) <= 0.05


# ---- 12. parameters of several dtypes


class Tempered(nn.Module):
    """Its first parameter is not of the dtype of its inputs."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5, dtype=dtype))
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x))) / self.temperature.float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, D], ids=str)
def test_a_first_parameter_of_another_dtype(dtype):
    assert_right(Tempered(dtype), torch.randn(6, 5), "(root)", "first", "last", rtol=1e-2 if dtype != D else 1e-5)


class Block(nn.Module):
    """A language model as it is served: tokens, a stream in half precision, norms and logits in single precision."""

    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(11, 8).bfloat16(), nn.RMSNorm(8)
        self.gate, self.up, self.down = (nn.Linear(8, 8, bias=False).bfloat16() for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        h = self.words(ids)
        z = self.norm(h.float()).bfloat16()
        h = h + self.down(functional.silu(self.gate(z)) * self.up(z))
        return self.head(h.float().mean(1))


def test_a_block_of_a_language_model():
    assert_right(Block(), torch.randint(0, 11, (6, 4)), rtol=0.03)


def test_a_patched_layer_in_single_precision_beside_one_in_half_precision():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.narrow, self.last = nn.Linear(5, 6), nn.Linear(6, 6).bfloat16(), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(torch.tanh(self.narrow(torch.tanh(self.first(x)).bfloat16()).float()))

    model, x = Beside(), torch.randn(6, 5)
    layer, scale = model.last, torch.linspace(1.0, 1.08, 6)
    layer.forward = lambda h: functional.linear(h * scale, layer.weight, layer.bias)
    assert_right(model, x, "last", rtol=1e-4)


# ---- 13. squeeze


class Pooled(nn.Module):
    """A convolution, pooled to one pixel, and what a test does next."""

    def __init__(self, after):
        super().__init__()
        self.convolution, self.last, self.after = nn.Conv2d(1, 4, 3), nn.Linear(8, 3), after
        self.drop_ones: Callable[[Tensor], Tensor] = Tensor.squeeze

    def forward(self, x):
        h = torch.relu(self.convolution(x))
        h = torch.cat([functional.adaptive_avg_pool2d(h, 1), functional.adaptive_max_pool2d(h, 1)], 1)
        return self.after(self, self.drop_ones(h))


class Tokens(nn.Module):
    """Inputs [n, 1, tokens, 4], of a single channel that is squeezed away."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)
        self.drop_ones: Callable[[Tensor], Tensor] = Tensor.squeeze

    def forward(self, x):
        return self.last(self.drop_ones(torch.tanh(self.first(x)))).flatten(1)


def assert_right_or_squeeze(model: nn.Module, x: Tensor, drop_ones: Callable[[Tensor], Tensor]) -> None:
    """Checks kernels of a model against those where `drop_ones` stands for its squeeze, or that a sentence says it."""
    with left_alone(model):
        try:
            found = ah.tangent_kernels(model, x)
        except REFUSALS as error:
            assert "squeeze" in str(error) and "\n" not in str(error), repr(error)
            return
    model.drop_ones = drop_ones
    for name, kernel in found.items():
        expected = kernel_one_by_one(model, x, list(model.get_submodule(name).parameters()))
        assert distance(kernel.to_dense(), expected) <= 1e-9


@pytest.mark.parametrize(
    "after",
    [
        lambda model, h: model.last(torch.cat([h[:, :4], h[:, 4:]], 1)),
        lambda model, h: model.last(h.softmax(1)),
        lambda model, h: functional.log_softmax(model.last(h), dim=-1),
        lambda model, h: torch.einsum("nd,od->no", h, model.last.weight) + model.last.bias,
    ],
    ids=["indexed", "softmax", "log-softmax", "einsum"],
)
def test_squeezes_at_one_sample(after):
    """With several samples nothing is wrong with these."""
    assert_right_or_squeeze(Pooled(after).double(), inputs(5, 1, 6, 6), lambda h: h.flatten(1))


def test_a_squeeze_that_makes_tokens_samples():
    assert_right_or_squeeze(Tokens().double(), inputs(5, 1, 3, 4), lambda h: h.squeeze(1))


@pytest.mark.parametrize(
    "change",
    [lambda y: y.squeeze(-1), lambda y: y[:, 0], lambda y: y.mean(1)],
    ids=["squeezed", "indexed", "averaged"],
)
def test_outputs_without_a_dimension_of_outputs(change):
    """f(x) comes as [n], whatever n is: those of a single output."""
    model, x = network(lambda model, x: change(plain(model, x)), outputs=1), inputs(6, 5)
    with_dimension = network(lambda model, x: change(plain(model, x)).unsqueeze(1), outputs=1)
    with_dimension.load_state_dict(model.state_dict())
    with left_alone(model):
        found = ah.tangent_kernels(model, x)
    for name, kernel in ah.tangent_kernels(with_dimension, x).items():
        assert torch.equal(found[name].to_dense(), kernel.to_dense())


def test_outputs_that_are_classes():
    model, x = network(lambda model, x: plain(model, x).argmax(1)), inputs(6, 5)
    with left_alone(model), pytest.raises(REFUSALS, match=r"floating-point outputs, got dtype torch\.int64"):
        ah.tangent_kernels(model, x)


# ---- 14. checkpoints, and frozen layers that forward reaches in other ways


@pytest.mark.parametrize("frozen", [False, True])
def test_reentrant_checkpoints(frozen):
    model = network(lambda model, x: model.last(checkpoint(torch.tanh, model.first(x), use_reentrant=True)))
    model.first.requires_grad_(not frozen)
    assert_right_or_refused(model, inputs(6, 5), "use_reentrant", "first", "last")


def test_checkpoints_of_sequences():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(4)))
            self.last = nn.Linear(5, 3)
            self.blocks[1].requires_grad_(False)

        def forward(self, x):
            h = checkpoint_sequential(self.blocks, 2, x, use_reentrant=False)
            with torch.autograd.graph.save_on_cpu():
                return self.last(h)

    assert_right(Deep().double(), inputs(6, 5), *(f"blocks.{i}.0" for i in range(4)), "last")


def by_a_lambda(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda h: layer(h)


def by_a_bound_method(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return layer.forward


def by_a_default(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    def again(h, use=layer):
        return functional.linear(h, use.weight, use.bias)

    return again


def by_an_object(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    class Step:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, h):
            return self.inner(h)

    return Step(layer)


def by_tuples(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    pair = types.SimpleNamespace(weight=layer.weight, bias=layer.bias)
    return lambda h: functional.linear(h, pair.weight, pair.bias)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("way", [by_a_lambda, by_a_bound_method, by_a_default, by_an_object, by_tuples])
def test_a_layer_that_is_called_as_a_module_and_in_another_way(way, frozen):
    """One use is seen and the other one may not be; the kernel is that of both."""
    model = network(lambda model, x: model.last(torch.tanh(model.again(torch.tanh(model.inner(x))))[:, :6]))
    model.inner, model.last = nn.Linear(5, 5).double(), nn.Linear(5, 3).double()
    del model.first
    model.again = way(model.inner)
    model.inner.requires_grad_(not frozen)
    assert_right_or_refused(model, inputs(6, 5), "inner.*requires_grad|requires_grad.*inner", "inner", "last")


class Thrifty(torch.autograd.Function):
    """A linear map that forms the gradient of its weight only where it is asked to."""

    @staticmethod
    def forward(ctx, h, weight):
        ctx.save_for_backward(h, weight)
        return h @ weight.T

    @staticmethod
    def backward(ctx, g):
        h, weight = ctx.saved_tensors
        return g @ weight, g.T @ h if ctx.needs_input_grad[1] else None


@pytest.mark.parametrize("frozen", [False, True])
def test_functions_of_users(frozen):
    model = network(lambda model, x: model.last(torch.tanh(Thrifty.apply(x, model.first.weight) + model.first.bias)))
    model.first.requires_grad_(not frozen)
    assert_right(model, inputs(6, 5), "first", "last")


def test_a_layer_that_is_called_without_gradients_too():
    """A fixed point is found without gradients, and one step from it is taken with them."""

    def equilibrium(model, x):
        z = torch.zeros(len(x), 6, dtype=x.dtype)
        with torch.no_grad():
            for _ in range(5):
                z = torch.tanh(model.first(x) + 0.5 * z)
        return model.last(torch.tanh(model.first(x) + 0.5 * z))

    assert_right_or_refused(network(equilibrium), inputs(6, 5), "no_grad", "first", "last")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # by dynamo
def test_compiled_parts():
    """Compiled by the backend that only traces."""

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
            self.part = torch.compile(nn.Sequential(nn.Linear(6, 6), nn.Tanh()).requires_grad_(False), backend="eager")

        def forward(self, x):
            return self.last(self.part(torch.tanh(self.first(x))))

    model, x = Partly().double(), inputs(6, 5)
    assert_right(model, x, "first", "last")
    try:
        assert_right_or_refused(model, x, "compile", "part.0")
    except UserWarning as warning:  # it is reached by nothing but what was compiled
        assert "requires_grad" in str(warning)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.jit.script(model),
        lambda model: torch.jit.trace(model, torch.zeros(1, 5, dtype=D)),
    ],
    ids=["data parallel", "compiled", "scripted", "traced"],
)
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_wrappers(wrap, frozen):
    """The layers have the names of the model or those of the wrapper."""
    model, x = sequential(), inputs(6, 5)
    expected = kernel_one_by_one(model, x, list(model[0].parameters()))
    model[0].requires_grad_(not frozen)
    wrapped = wrap(model)
    with left_alone(model):
        try:
            found = ah.tangent_kernels(wrapped, x)
        except (*REFUSALS, UserWarning) as error:
            assert re.search("requires_grad|compile|[Ss]cript", str(error)), error
            return
    names = [name for name in found if name.rpartition(".")[2] == "0"]
    assert distance(found[names[0]].to_dense(), expected) <= 1e-9


@pytest.mark.parametrize("frozen", [False, True])
def test_pruned_layers(frozen):
    model, x = sequential(), inputs(6, 5)
    prune.l1_unstructured(model[0], "weight", 0.4)
    model[0].requires_grad_(not frozen)
    model(x)
    assert_right(model, x, "0", "2")


def test_parametrisations_that_are_cached():
    """A cache of weights by the identity of the module that they were registered for."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))
    model, x = nn.Sequential(layer, nn.Tanh(), nn.Linear(6, 3)).double(), inputs(6, 5)
    with nn.utils.parametrize.cached():
        assert_refused(model, x, r"outside of torch\.nn\.utils\.parametrize\.cached")


# ---- 15. vmap and functional calls


class Ensemble(nn.Module):
    """Members whose stacked parameters are called by vmap."""

    def __init__(self):
        super().__init__()
        members = [nn.Linear(5, 3) for _ in range(3)]
        stacked, _ = torch.func.stack_module_state(members)
        self.members = nn.ParameterDict({name: nn.Parameter(value.detach()) for name, value in stacked.items()})
        self.one, self.first = [members[0]], nn.Linear(5, 5)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return torch.vmap(lambda state: torch.func.functional_call(self.one[0], state, (h,)))(dict(self.members)).mean(
            0
        )


def test_ensembles_by_vmap():
    assert_right(Ensemble().double(), inputs(6, 5), "first", "members")


def over_tokens(model: Network, x: Tensor) -> Tensor:
    """The vmapped dimension is that of tokens; the samples are seen, and come first."""
    tokens = x.unsqueeze(2) * torch.arange(1.0, 4, dtype=x.dtype)
    return model.last(torch.vmap(lambda one: torch.tanh(model.first(one)), in_dims=2)(tokens).mean(0))


def in_chunks(model: Network, x: Tensor) -> Tensor:
    return torch.vmap(lambda one: plain(model, one), chunk_size=4)(x)


def generated_weights(model: Network, x: Tensor) -> Tensor:
    """A network that makes the weights of another one, for each sample its own."""
    made = model.first(x).unflatten(1, (2, 3))
    return torch.vmap(lambda w, one: torch.tanh(one[:2] @ w))(made, x) + model.last(model.first(x))


def replaced_weights(model: Network, x: Tensor) -> Tensor:
    """A functional call with weights that were changed on the way."""
    changed = {"weight": model.first.weight * 1.5, "bias": model.first.bias}
    return model.last(torch.tanh(torch.func.functional_call(model.first, changed, (x,))))


@pytest.mark.parametrize("forward", [over_tokens, in_chunks, generated_weights, replaced_weights])
def test_vmap_and_functional_calls(forward):
    assert_right(network(forward), inputs(6, 5), "first", "last")


# ---- 16. sparse gradients


class Sparse(nn.Module):
    """Words that repeat, in tables with sparse gradients; one table is that of the head, too."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.last = way, nn.Linear(4, 9, bias=False)
        if way == "bag":
            self.table = nn.EmbeddingBag(9, 4, sparse=True, mode="sum", padding_idx=0)
        elif way == "function":
            self.weight = nn.Parameter(torch.randn(9, 4))
        else:
            self.table = nn.Embedding(9, 4, sparse=True, padding_idx=0)
        if way == "tied":
            self.last.weight = self.table.weight

    def forward(self, ids):
        if self.way == "bag":
            return self.last(self.table(ids, per_sample_weights=torch.ones_like(ids, dtype=D).cumsum(1)))
        if self.way == "function":
            return self.last(functional.embedding(ids, self.weight, sparse=True).sum(1))
        return self.last(torch.tanh(self.table(ids)).sum(1))


@pytest.mark.parametrize("way", ["bag", "function", "embedding", "tied"])
def test_sparse_gradients(way):
    ids = torch.tensor([[1, 1, 2, 0], [3, 3, 3, 3], [4, 5, 4, 5], [8, 0, 0, 0]])
    assert_right(Sparse(way).double(), ids)


def test_sparse_matrices_of_a_graph():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
            self.register_buffer("mixing", torch.eye(6, dtype=D).roll(1, 0).to_sparse())
            self.pruned = torch.eye(6, dtype=D).to_sparse_csr()

        def forward(self, x):
            h = torch.sparse.mm(self.mixing, torch.tanh(self.first(x)).T)
            return self.last((self.pruned @ h).T)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        model = Graph().double()
        x, layers = inputs(6, 5), ("first", "last")
        expected = [kernel_one_by_one(model, x, list(model.get_submodule(name).parameters())) for name in layers]
        found = ah.tangent_kernels(model, x)
    for name, kernel in zip(layers, expected, strict=True):
        assert distance(found[name].to_dense(), kernel) <= 1e-9


# ---- 17. outputs without gradients, or of another kind


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda y: y > 0, "bool"),
        (lambda y: torch.fft.fft(y), "complex"),
        (lambda y: None, "NoneType"),
        (lambda y: list(y), "list"),
        (lambda y: y.detach().numpy(), "ndarray"),
    ],
    ids=["bool", "complex", "none", "list", "array"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_outputs_of_another_kind(change, match):
    assert_refused(network(lambda model, x: change(plain(model, x))), inputs(6, 5), match)


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


class Answer(collections.OrderedDict):
    """As outputs of language models are: a dict whose entries are attributes, too."""

    def __getattr__(self, name):
        return self[name]


@pytest.mark.parametrize("make", [lambda y: Output(y), lambda y: Answer(logits=y), lambda y: {"logits": y}])
def test_outputs_with_logits(make):
    """They are measured, or the sentence says what came."""
    model, x = network(lambda model, x: make(plain(model, x))), inputs(6, 5)
    with left_alone(model):
        try:
            found = ah.tangent_kernels(model, x)["first"].to_dense()
        except REFUSALS as error:
            assert re.search("Output|Answer|dict", str(error)), error
            return
    model.run = plain
    assert distance(found, kernel_one_by_one(model, x, list(model.first.parameters()))) <= 1e-9


@torch.no_grad()
def without_gradients(model: Network, x: Tensor) -> Tensor:
    return plain(model, x)


@torch.inference_mode()
def for_serving(model: Network, x: Tensor) -> Tensor:
    return plain(model, x)


@pytest.mark.parametrize(
    "forward",
    [
        lambda model, x: functional.one_hot(plain(model, x).argmax(1), 3).to(x),
        lambda model, x: plain(model, x).detach(),
        lambda model, x: (plain(model, x) > 0).to(x),
        lambda model, x: plain(model, x).data.softmax(1),
        without_gradients,
        for_serving,
    ],
    ids=["one-hot", "detached", "threshold", "data", "no_grad", "inference_mode"],
)
def test_outputs_that_are_cut_off(forward):
    """Floating-point outputs without a gradient: one sentence says so."""
    model, x = network(forward), inputs(6, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_refused(model, x, "without gradients|gradients to flow|not differentiable|does not require grad|no_grad")


def test_a_complex_parameter_outside_of_the_layers_that_are_asked_for():
    """A spectral filter beside ordinary layers, which are measured alone."""

    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
            self.filter = nn.Parameter(torch.randn(4, dtype=torch.complex128))

        def forward(self, x):
            h = torch.fft.irfft(torch.fft.rfft(torch.tanh(self.first(x))) * self.filter, n=6)
            return self.last(h)

    model = Spectral()
    model.first.double(), model.last.double()
    assert_right(model, inputs(6, 5), "first", "last")
    with pytest.raises(REFUSALS, match="complex"):
        ah.tangent_kernels(model, inputs(6, 5))


# ---- networks that keep to the rules


class Experts(nn.Module):
    """Each sample goes to one expert, which sees those samples alone."""

    def __init__(self, dispatch: str):
        super().__init__()
        self.router, self.experts = nn.Linear(5, 3), nn.ModuleList([nn.Linear(5, 6) for _ in range(3)])
        self.last, self.dispatch = nn.Linear(6, 3), dispatch

    def forward(self, x):
        weight, chosen = self.router(x).softmax(1).max(1)
        h = x.new_zeros(len(x), 6)
        if self.dispatch == "sorted":
            order = chosen.argsort(stable=True)
            parts = x[order].split(torch.bincount(chosen, minlength=3).tolist())
            done = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
            h = torch.zeros_like(done).index_copy(0, order, done)
        elif self.dispatch == "masked":
            for i, expert in enumerate(self.experts):
                rows = (chosen == i).nonzero()[:, 0]
                if len(rows):
                    h = h.index_add(0, rows, expert(x[rows]))
        else:  # an expert is called with all samples where any sample goes to it
            for i, expert in enumerate(self.experts):
                if (chosen == i).any():
                    h = h + expert(x) * (chosen == i).unsqueeze(1)
        return self.last(torch.tanh(h) * weight.unsqueeze(1))


@pytest.mark.parametrize("dtype", [D, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dispatch", ["sorted", "masked", "whole"])
@pytest.mark.filterwarnings("ignore:kernel .*the output does not depend on it:UserWarning")  # an idle expert
def test_experts(dispatch, dtype):
    model, x = Experts(dispatch).to(dtype), torch.randn(8, 5).to(dtype)
    assert len(model.router(x).argmax(1).unique()) > 1
    assert_right(model, x, rtol={D: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.03}[dtype])


@pytest.mark.parametrize("special", range(6))
def test_a_branch_that_some_samples_take(special):
    """Another layer acts where a sample is large, and is not called where none is."""

    def branching(model, x):
        h, large = torch.tanh(model.first(x)), x[:, :1] > 3
        if large.any():
            h = h + large * torch.tanh(model.extra(h))
        return model.last(h)

    model, x = network(branching), inputs(6, 5).clamp(-2, 2)
    model.extra = nn.Linear(6, 6).double()
    x[special, 0] = 4.0
    assert_right(model, x, "first", "extra", "last")


@pytest.mark.parametrize("special", range(6))
def test_weights_that_some_samples_use_in_another_way(special):
    def twice(model, x):
        z, large = model.first(x), x[:, :1] > 3
        if large.any():
            z = torch.where(large, functional.linear(x, 2 * model.first.weight), z)
        return model.last(torch.tanh(z))

    x = inputs(6, 5).clamp(-2, 2)
    x[special, 0] = 4.0
    assert_right(network(twice), x, "first", "last")


def lengths_of(x: Tensor) -> Tensor:
    return (x[:, :, 0] != 0).sum(1)


def padded(lengths: Sequence[int], width: int, dtype: torch.dtype = D) -> Tensor:
    """Sequences that end with zeros."""
    x = torch.randn(len(lengths), max(lengths) + 1, width, dtype=dtype)
    for row, length in zip(x, lengths, strict=True):
        row[length:] = 0
    return x


class Trimmed(nn.Module):
    """Sequences are trimmed to the longest one of the batch; what pads them does not act."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.embed, self.last = kind, nn.Linear(3, 4), nn.Linear(4, 3)
        if kind == "cell":
            self.cell = nn.GRUCell(4, 4)
        elif kind == "loop":
            self.mix = nn.Linear(4, 4)
        elif kind == "packed":
            self.cells = nn.LSTM(4, 4, batch_first=True)
        elif kind == "attention":
            self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        lengths = lengths_of(x)
        x = x[:, : int(lengths.max())]
        there = torch.arange(x.shape[1]) < lengths[:, None]
        h = torch.tanh(self.embed(x)) * there[:, :, None]
        if self.kind == "attention":
            h = self.block(h, src_key_padding_mask=~there) * there[:, :, None]
        elif self.kind == "packed":
            packed = nn.utils.rnn.pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
            return self.last(self.cells(packed)[1][0][0])
        elif self.kind in ("cell", "loop"):
            state = h.new_zeros(len(x), 4)
            for t in range(x.shape[1]):
                new = self.cell(h[:, t], state) if self.kind == "cell" else torch.tanh(self.mix(state) + h[:, t])
                state = torch.where(there[:, t, None], new, state)
            return self.last(state)
        return self.last(h.sum(1) / lengths[:, None])


@pytest.mark.parametrize("lengths", [(2, 4, 1, 3), (4, 2, 1)], ids=["short first", "long first"])
@pytest.mark.parametrize("kind", ["pooled", "attention", "cell", "loop", "packed"])
def test_sequences_trimmed_to_the_longest(kind, lengths):
    assert_right(Trimmed(kind).double().eval(), padded(lengths, 3))


def test_sequences_trimmed_within_chunks():
    """Chunks of samples are of different lengths."""

    class WideTokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(1, 20_000, bias=False)

        def forward(self, x):
            x = x[:, : int(lengths_of(x).max())]
            return torch.tanh(self.embed(x)).sum(1).unflatten(1, (5, 4_000)).mean(2)

    assert_right(WideTokens().double(), padded([2] * 16 + [4, 3], 1)[:, :4], "embed")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = kind(3, 4, num_layers=2, bidirectional=kind is nn.GRU, batch_first=True)
            self.last = nn.Linear(8 if kind is nn.GRU else 4, 2)

        def forward(self, x):
            return self.last(self.cells(x)[0][:, -1])

    assert_right(Recurrent().double(), inputs(5, 3, 3))


def test_halting_for_each_sample():
    """Steps are taken until every sample has halted; a sample that has halted stays as it is."""

    def halting(model, x):
        h, going = torch.tanh(model.first(x)), torch.ones(len(x), 1, dtype=torch.bool)
        for _ in range(8):
            h = torch.where(going, torch.tanh(model.step(h)), h)
            going = going & (h.mean(1, keepdim=True) > 0)
            if not going.any():
                break
        return model.last(h)

    model = network(halting)
    model.step = nn.Linear(6, 6).double()
    assert_right(model, inputs(8, 5), "first", "step", "last")


def deep(depth: int, width: int, scale: float = 1.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layer = nn.Linear(4 if i == 0 else width, width)
        nn.init.normal_(layer.weight, std=scale * (2 / layer.in_features) ** 0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 2))


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_networks_in_the_chaotic_phase(dtype):
    """Rounding grows from layer to layer, so that values are not compared; it is no fault of the network."""
    layers = [module for _ in range(40) for module in (nn.Linear(32, 32), nn.Tanh())]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=4 / 32**0.5)
    model, x = nn.Sequential(*layers, nn.Linear(32, 2)).to(dtype), torch.randn(20, 32, dtype=dtype)
    with left_alone(model):
        assert all(kernel.trace() > 0 for kernel in ah.tangent_kernels(model, x).values())


def test_two_hundred_layers_in_single_precision():
    model, x = deep(200, 24), torch.randn(7, 4)
    with left_alone(model):
        found = ah.tangent_kernels(model, x, layers=["0", "200", "400"])
    double = copy.deepcopy(model).double()
    for name, kernel in found.items():
        expected = kernel_one_by_one(double, x.double(), list(double.get_submodule(name).parameters()))
        assert distance(kernel.to_dense(), expected) <= 1e-2


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(D, 1e-25), (D, 1e25), (torch.float32, 1e-12), (torch.float32, 1e12)],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("what", ["inputs", "outputs", "weights"])
def test_scales(what, dtype, scale):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).to(dtype)
    x, y = torch.randn(6, 4, dtype=dtype), torch.arange(6) % 2
    nn.init.zeros_(model[0].bias)
    if what == "inputs":
        x = x * scale
    else:
        with torch.no_grad():
            (model[2] if what == "outputs" else model[0]).weight.mul_(scale)
    double = copy.deepcopy(model).double()
    with left_alone(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", ah.DegenerateKernelWarning)  # of biases, whose kernels are constant
        found = ah.tangent_kernels(model, x)
        report = ah.layerwise_alignment(model, x, y)
    for name in ("0", "2"):
        expected = kernel_one_by_one(double, x.double(), list(double.get_submodule(name).parameters()))
        assert distance(found[name].to_dense(), expected) <= (1e-9 if dtype == D else 1e-4)
        assert not report[name] > 1 and not report[name] < 0


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("dtype", [D, torch.float32], ids=str)
def test_few_samples_and_outputs(n, outputs, dtype):
    model = nn.Sequential(nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, outputs)).to(dtype)
    assert_right(model, torch.randn(n, 1, 4, dtype=dtype), rtol=1e-9 if dtype == D else 1e-4)


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=str)
def test_networks_that_are_zero_or_nearly_constant(dtype):
    x, y = torch.randn(6, 5, dtype=dtype), torch.arange(6) % 3
    zero = sequential(dtype)
    for parameter in zero.parameters():
        nn.init.zeros_(parameter)
    assert_right(zero, x, "0", "2")
    with pytest.warns(ah.DegenerateKernelWarning):
        assert torch.isnan(torch.tensor(ah.layerwise_alignment(zero, x, y)["0"]))
    constant, near = sequential(dtype), 1 + 1e-4 * x
    assert_right(constant, near, "0", "2", rtol=1e-9 if dtype == D else 1e-4)
    assert 0 <= ah.layerwise_alignment(constant, near, y)["0"] <= 1


class Merged(nn.Module):
    """A block as users write it: patches, a class token, heads by reshapes, a mask, and a head that is tied."""

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Linear(2, 4), nn.Parameter(torch.randn(1, 1, 4))
        self.qkv, self.out, self.norm = nn.Linear(4, 12), nn.Linear(4, 4), nn.LayerNorm(4)
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))

    def forward(self, x):
        h = self.embed(x.reshape(-1, 2)).reshape(len(x), -1, 4)
        h = torch.cat([self.token.expand(len(x), -1, -1), h], 1)
        z = self.norm(h)
        q, k, v = self.qkv(z).reshape(len(x), 4, 3, 2, 2).permute(2, 0, 3, 1, 4)
        h = h + self.out(functional.scaled_dot_product_attention(q, k, v, self.mask).transpose(1, 2).flatten(2))
        return functional.linear(h[:, -1], self.embed.weight.T)


def test_a_block_as_users_write_it():
    assert_right(Merged().double(), inputs(5, 6))
