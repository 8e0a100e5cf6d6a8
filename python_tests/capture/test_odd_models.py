"""Situations in which a measurement was wrong, was refused without reason, or changed the model."""

from __future__ import annotations

import abc
import collections
import copy
import gc
import inspect
import io
from typing import Generic, TypeVar

import pytest
import torch
from test_situations import D, Network, assert_right, distance, kernel_one_by_one, network
from torch import nn
from torch.nn import functional

import ahkernels as ah


def inputs(n: int = 7) -> torch.Tensor:
    return torch.randn(n, 5, dtype=D, generator=torch.Generator().manual_seed(0))


def labels(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(x)) % 3


def plain(model, x):
    return model.last(torch.tanh(model.first(x)))


def assert_right_first(model: nn.Module, x: torch.Tensor, **options) -> None:
    expected = kernel_one_by_one(model, x, list(model.first.parameters()))
    off = distance(ah.tangent_kernels(model, x, **options)["first"].to_dense(), expected)
    assert off < 1e-9, f"off by {off:.1e}"


# ---- chunks


def experts(model, x):
    h = torch.tanh(model.first(x))
    output = model.last(h)
    chosen = x[:, 0] > 0
    if chosen.any():
        output = output + chosen[:, None] * model.expert(h[:, None]).flatten(1).sum(1, keepdim=True)
    return output


EXPERTS = {
    "linear": lambda: nn.Linear(6, 4),
    "convolution": lambda: nn.Conv1d(1, 2, 3),
    "without bias": lambda: nn.Conv1d(1, 2, 3, bias=False),
    "transposed": lambda: nn.ConvTranspose1d(1, 2, 3),
    "norm": lambda: nn.LayerNorm(6),
}


@pytest.mark.parametrize("certify", [0, 1])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("kind", EXPERTS)
def test_chunks_in_which_a_layer_is_not_called(kind, descending, certify):
    x = inputs(12)
    x = x[x[:, 0].argsort(descending=descending)]
    model = network(experts)
    model.expert = EXPERTS[kind]().double()
    expected = kernel_one_by_one(model, x, list(model.expert.parameters()))
    for budget in (4000, 500):
        kernel = ah.tangent_kernels(model, x, memory_budget=budget, certify=certify)["expert"]
        assert distance(kernel.to_dense(), expected) < 1e-9
        # What the forward Gram of a layer is that few samples call may be argued about; an error is none.
        ah.layerwise_alignment(
            model, x, labels(x), memory_budget=budget, certify=certify, statistics=["forward_cka", "backward_cka"]
        )


class Trimmed(nn.Module):
    """Sentences that are cut to the longest of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, words):
        longest = int((words != 0).sum(1).max())
        return self.last(torch.tanh(self.table(words[:, :longest])).sum(1))


def test_words_that_a_chunk_lacks_are_no_word():
    words = torch.randint(1, 9, (8, 6), generator=torch.Generator().manual_seed(0))
    for index in range(8):
        words[index, 1 + index * 5 // 7 :] = 0
    torch.manual_seed(0)
    model = Trimmed().double()
    found = [
        ah.layerwise_alignment(model, words, labels(words), statistics=["forward_cka"], memory_budget=budget)
        for budget in (10**8, 3000)
    ]
    assert torch.allclose(found[0].forward_cka, found[1].forward_cka)


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(200, 1)
        self.weight = nn.Parameter(torch.randn(6, 200))

    def forward(self, x):
        return self.last(torch.sqrt(self.first(x) @ self.weight))


@pytest.mark.parametrize("budget", [10**8, 20_000])
def test_nan_on_the_way_to_a_root_of_the_kernel(budget):
    torch.manual_seed(0)
    with pytest.raises(ah.NonFiniteError, match="expected finite numbers"):
        ah.tangent_kernels(Root().double(), inputs(), layers=["(root)"], memory_budget=budget)


# ---- what is certified anew


def scaled(layer, scale, h):
    return functional.linear(h, scale * layer.weight, layer.bias)


def test_patches_one_after_the_other():
    x, model = inputs(), network(plain)
    layer = model.first
    for scale in (1.0, 2.0, 3.0, 4.0):
        layer.forward = lambda h, scale=scale: scaled(layer, scale, h)
        assert_right_first(model, x)
        del layer.forward  # and another function comes to be at its address


def test_a_class_patched_between_two_calls(monkeypatch):
    x, model = inputs(), network(plain)
    assert_right_first(model, x)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, h: scaled(self, 2.0, h))
    assert_right_first(model, x)


def test_settings_that_a_patch_reads():
    class Settings:
        scale = 1.0

    x, model = inputs(), network(plain)
    model.settings = Settings()
    model.first.forward = lambda h: scaled(model.first, model.settings.scale, h)
    assert_right_first(model, x)
    model.settings.scale = 2.0
    assert_right_first(model, x)


def test_a_patch_whose_variable_changes():
    x, model, scale = inputs(), network(plain), 1.0

    def patched(h):
        return scaled(model.first, scale, h)

    model.first.forward = patched
    assert_right_first(model, x)
    scale = 2.0
    assert_right_first(model, x)


def test_lists_with_other_parts():
    x, model = inputs(), network(plain)
    model.parts = [[0, 1], [2]]
    ah.layerwise_alignment(model, x, labels(x))
    model.parts = [[0], [1, 2]]
    assert ah.layerwise_alignment(model, x, labels(x)).certificate.calls_ago == 0


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, dtype=D))

    def forward(self, h):
        return h * self.weight


class ScaleRule:
    bias = True

    def parameters(self, module):
        return ["weight"]

    def record(self, module, args, kwargs):
        return args[0]

    def factors(self, module, recorded, gradient):
        return recorded.new_empty(len(recorded), 1, 0), (gradient * recorded).unsqueeze(2)

    def has_bias(self, module):
        return self.bias


def of_rule(rule):
    """A network with a module that a rule is registered for."""

    class Scaled(Scale):
        pass

    ah.register_rule(Scaled, rule)
    model = network(lambda model, x: model.last(model.scale(torch.tanh(model.first(x)))))
    model.scale = Scaled()
    return model


def test_a_rule_with_a_jacobian_but_no_bias():
    rule = ScaleRule()
    rule.bias = False  # the kernel of an empty forward factor is zero then
    x, model = inputs(), of_rule(rule)
    expected = kernel_one_by_one(model, x, list(model.scale.parameters()))
    try:
        found = ah.tangent_kernels(model, x, certify=1)["scale"]
    except ValueError as error:
        assert "bias" in str(error)
    else:
        assert distance(found.to_dense(), expected) < 1e-9


@pytest.mark.parametrize("recorded", [(), torch.ones(())], ids=["nothing", "a number"])
def test_rules_that_record_no_samples(recorded):
    rule = ScaleRule()
    rule.record = lambda module, args, kwargs: recorded
    try:
        ah.tangent_kernels(of_rule(rule), inputs())
    except (TypeError, ValueError) as error:
        assert "record" in str(error)


def test_rules_with_forward_factors_of_another_shape():
    rule = ScaleRule()
    rule.factors = lambda module, recorded, gradient: (recorded, (gradient * recorded).unsqueeze(2))
    with pytest.raises((TypeError, ValueError), match=r"scale.*factor|factor.*scale"):
        ah.tangent_kernels(of_rule(rule), inputs())


# ---- attributes of models


def test_tables_by_module():
    model = network(lambda model, x: model.last(model.scales[model.first] * torch.tanh(model.first(x))))
    model.scales = {model.first: 2.0}
    assert_right(model, inputs())


def test_tables_by_parameter():
    model = network(lambda model, x: model.last(model.scales[model.first.weight] * torch.tanh(model.first(x))))
    model.scales = {model.first.weight: 2.0}
    assert_right(model, inputs())


def test_a_hook_that_knows_the_names_of_modules():
    model, seen = network(plain), {}
    names = {module: name for name, module in model.named_modules()}
    model.first.register_forward_hook(lambda module, args, output: seen.update({names[module]: output.detach()}))
    assert_right(model, inputs())


@pytest.mark.parametrize("what", ["first.weight", "buffer"])
def test_attributes_of_parameters_and_buffers(what):
    def forward(model, x):
        marked = model.buffer if what == "buffer" else model.first.weight
        return model.last(marked.width * torch.tanh(model.first(x)))  # as mup has it

    model = network(forward)
    model.register_buffer("buffer", torch.ones(1))
    (model.buffer if what == "buffer" else model.first.weight).width = 2.0
    assert_right(model, inputs())


def test_slots_of_modules():
    class Slotted(Network):
        __slots__ = ("scale",)

    model = Slotted(lambda model, x: model.scale * plain(model, x)).double()
    model.scale = 2.0
    if "scale" in vars(model):  # where a module stores all in its dict
        pytest.skip("no slot is used")
    assert_right(model, inputs())


def cyclic():
    found: list[object] = [1]
    found.append(found)
    return found


def nested():
    found: list[object] = []
    for _ in range(1500):
        found = [found]
    return found


def chained():
    class Node:
        following: object = None

    first = Node()
    for _ in range(3000):
        node = Node()
        node.following, first = first, node
    return first


class Pair(tuple):
    def __new__(cls, one, two):
        return super().__new__(cls, (one, two))


class Doubled(collections.namedtuple("Doubled", "one two")):
    def __new__(cls, one):
        return super().__new__(cls, one, 2 * one)


class Word(str):
    __slots__ = ()
    __hash__ = None

    def __eq__(self, other):
        return str.__eq__(self, other)


class Lazy(collections.abc.Mapping):
    def __getitem__(self, key):
        raise OSError("the disk is away")

    def __iter__(self):
        return iter(["key"])

    def __len__(self):
        return 1


class Closed:
    def __getattribute__(self, name):
        raise RuntimeError(f"no {name}")


ATTRIBUTES = {
    "a list in itself": cyclic,
    "nested lists": nested,
    "a chain of objects": chained,
    "a tuple of a kind of its own": lambda: Pair(1, 2),
    "a named tuple of a kind of its own": lambda: Doubled(1),
    "a word without hash": lambda: Word("a"),
    "a table that cannot be read": Lazy,
}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_odd_attributes(kind):
    model = network(plain)
    model.odd = ATTRIBUTES[kind]()
    ah.tangent_kernels(model, inputs())


def test_views_of_a_tensor_that_forward_writes_to():
    def forward(model, x):
        model.cache[:, 0] = 2.0
        return model.last(model.row * torch.tanh(model.first(x)))

    x, model = inputs(), network(forward)
    model.register_buffer("cache", torch.ones(6, 3, dtype=D))
    model.row = model.cache[:, 0]
    expected = kernel_one_by_one(model, x, list(model.last.parameters()))
    model.cache.fill_(1)
    assert distance(ah.tangent_kernels(model, x)["last"].to_dense(), expected) < 1e-9


# ---- what forward sees of the twin


def test_a_copy_of_a_layer_in_forward():
    model = network(lambda model, x: model.last(torch.tanh(copy.deepcopy(model.first)(x)) + model.first(x)))
    assert_right(model, inputs())


def test_a_copy_of_a_layer_as_teacher():
    def forward(model, x):
        with torch.no_grad():
            taught = copy.deepcopy(model.first)(x)
        return model.last(torch.tanh(model.first(x)) * taught)

    assert_right(network(forward), inputs())


class Optional(Scale):
    def forward(self, h, factor=1.0):
        return factor * h * self.weight


def test_the_signature_of_a_layer():
    def forward(model, x):
        keywords = {"factor": 3.0} if "factor" in inspect.signature(model.optional.forward).parameters else {}
        return model.last(model.optional(torch.tanh(model.first(x)), **keywords))

    model = network(forward)
    model.optional = Optional()
    assert_right(model, inputs())


# ---- the model is left alone


class Abstract(abc.ABC):  # noqa: B024
    count = 0


class Typed(Generic[TypeVar("T")]):
    count = 0


class Made:
    count = 0

    def __new__(cls):
        return super().__new__(cls)


class Uncopied:
    count = 0

    def __deepcopy__(self, memo):
        raise TypeError("not to be copied")


class Slotted:
    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


class Dict(collections.UserDict):
    count = 0


class Module(nn.Module):
    count = 0


@pytest.mark.parametrize("kind", [Abstract, Typed, Made, Uncopied, Dict, Module], ids=lambda kind: kind.__name__)
def test_objects_that_forward_counts_in(kind):
    def counting(model, x):
        model.held[0].count += 1
        return plain(model, x)

    model = network(counting)
    model.held = [kind()]
    ah.tangent_kernels(model, inputs())
    assert model.held[0].count == 0


def test_a_cache_beside_a_large_vocabulary():
    class Cache:
        count = 0

    def counting(model, x):
        model.cache.count += 1
        return plain(model, x)

    model = network(counting)
    model.vocabulary = [(str(index), index) for index in range(20_000)]
    model.cache = Cache()
    ah.tangent_kernels(model, inputs())
    assert model.cache.count == 0


def test_statistics_of_a_module_that_is_not_registered():
    def forward(model, x):
        model.held[0](model.first(x).detach())
        return plain(model, x)

    model = network(forward)
    model.held = [nn.BatchNorm1d(6).double()]
    ah.tangent_kernels(model, inputs())
    assert not model.held[0].running_mean.any()


def test_hooks_that_remove_themselves():
    model = network(plain)
    model.handle = model.first.register_forward_hook(lambda module, args, output: model.handle.remove())
    ah.tangent_kernels(model, inputs())
    assert len(model.first._forward_hooks) == 1


def test_a_model_that_removes_its_hooks_in_the_end():
    class Extractor(Network):
        def __del__(self):
            for handle in self.handles:
                handle.remove()

    model = Extractor(plain).double()
    model.handles = [model.first.register_forward_hook(lambda module, args, output: None)]
    ah.tangent_kernels(model, inputs())
    gc.collect()
    assert len(model.first._forward_hooks) == 1


def test_an_object_that_closes_what_it_has_in_the_end():
    class Store:
        def __init__(self):
            self.file = io.StringIO()

        def __del__(self):
            self.file.close()

    model = network(plain)
    model.store = Store()
    ah.tangent_kernels(model, inputs())
    gc.collect()
    assert not model.store.file.closed


# ---- the tracker, options


@pytest.mark.parametrize("reports", [[], None, {"global": {"certificate": {"differences": [], "calls_ago": 0}}}])
def test_states_that_are_none(reports):
    x = inputs()
    tracker = ah.AlignmentTracker(network(plain), x, labels(x))
    with pytest.raises(ValueError, match="state"):
        tracker.load_state_dict({"history": [{"step": 1, "metrics": {}, "reports": reports}]})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", ["sparse", "nested"])
def test_inputs_of_odd_kinds(kind):
    x = {
        "sparse": lambda: inputs().to_sparse(),
        "nested": lambda: torch.nested.nested_tensor(list(inputs())),
    }[kind]()
    with pytest.raises((TypeError, ValueError), match=r"^x: "):
        ah.tangent_kernels(network(plain), x)


# ---- what is refused


def store_in_a_hook(weight):
    weight.register_hook(lambda gradient: gradient)


def store_an_attribute(weight):
    weight.seen = True


def freeze(weight):
    weight.requires_grad_(False)


def replace_the_memory(weight):
    weight.data = weight.data.clone()


@pytest.mark.parametrize("change", [store_in_a_hook, store_an_attribute, freeze, replace_the_memory])
def test_a_forward_that_changes_parameters(change):
    def forward(model, x):
        change(model.first.weight)
        return plain(model, x)

    model = network(forward)
    before = dict(vars(model.first.weight)), model.first.weight.data_ptr()
    with pytest.raises(ValueError, match=r"parameters as they are, got one that changes 'first\.weight'|gradients"):
        ah.tangent_kernels(model, inputs())
    assert before == (dict(vars(model.first.weight)), model.first.weight.data_ptr())
    assert model.first.weight.requires_grad and not model.first.weight._backward_hooks


def test_a_teacher_that_follows_in_forward():
    def forward(model, x):
        with torch.no_grad():
            model.teacher[0].weight.lerp_(model.first.weight, 0.1)
        return plain(model, x)

    model = network(forward)
    model.teacher = [nn.Linear(5, 6).double()]
    before = model.teacher[0].weight.detach().clone()
    with pytest.raises(ValueError, match="changes 'weight' of a Linear in an attribute in place"):
        ah.tangent_kernels(model, inputs())
    assert torch.equal(model.teacher[0].weight, before)


def test_scripted_models():
    with pytest.raises(ValueError, match="expected a module of Python, got a scripted one"):
        ah.tangent_kernels(torch.jit.script(nn.Sequential(nn.Linear(5, 6))), torch.randn(3, 5))
