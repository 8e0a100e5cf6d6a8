"""Kernels and alignments from model and data against torch.func Jacobians in fp64, and what capture refuses."""

from __future__ import annotations

import copy
import math
import warnings
import weakref

import networks
import pytest
import reference
import torch
from torch import nn

import ahkernels as ah
from ahkernels import layerwise
from ahkernels.capture import CaptureOptions, fallback, run, start_capture
from ahkernels.capture.memory import Memory

OUTPUTS = ["all", "trace", "sum", 0, "first and last", "last and first"]
BOTH = ("global", "per_output")


def meaning(outputs, o):
    pairs = {"first and last": [0, o - 1], "last and first": [o - 1, 0]}
    chosen = pairs.get(outputs, outputs) if isinstance(outputs, str) else outputs
    return sorted(set(chosen)) if isinstance(chosen, list) and o == 1 else chosen


@pytest.mark.parametrize("outputs", OUTPUTS, ids=str)
@pytest.mark.parametrize("name", list(networks.all_networks()))
def test_against_jacobians(name, outputs):
    model = networks.all_networks()[name].double()
    x = torch.randn(13, 6, dtype=torch.float64)
    o = model(x).shape[1]
    y = torch.randint(0, o, (13,))
    spec = meaning(outputs, o)
    jacobians = reference.jacobians(model, x)
    kernels = ah.tangent_kernels(model, x, outputs=spec)
    assert set(kernels) == set(jacobians)
    labels = reference.label_kernel(y, o, spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ah.DegenerateKernelWarning)
        report = ah.layerwise_alignment(model, x, y, outputs=spec)
        for layer, kernel in kernels.items():
            expected = reference.kernels_of_outputs(jacobians[layer], spec)
            assert kernel.shape == expected.shape
            dense = kernel.to_dense()
            assert (dense - expected).norm() <= 1e-10 * expected.norm()
            assert kernel.trace() == pytest.approx(float(expected.trace()), rel=1e-10)
            assert kernel.frobenius_norm(centering=None) == pytest.approx(float(expected.norm()), rel=1e-10)
            centered = reference.centered(expected).norm()
            if centered <= 1e-12 * expected.norm() or reference.centered(labels).norm() < 1e-12:
                assert torch.isnan(torch.tensor(report[layer]))
                continue
            assert kernel.frobenius_norm() == pytest.approx(float(centered), rel=1e-10)
            assert report[layer] == pytest.approx(reference.cka(expected, labels), rel=1e-10, abs=1e-10)
            assert report[layer] == ah.cka(kernel, y)
            v = torch.randn(expected.shape[0], 2, dtype=torch.float64)
            assert (kernel @ v - expected @ v).norm() <= 1e-10 * expected.norm() * v.norm()


@pytest.mark.parametrize("outputs", ["all", "trace", "sum", 0], ids=str)
@pytest.mark.parametrize("name", list(networks.networks_without_rules()))
def test_layers_without_a_rule_against_jacobians(name, outputs):
    model, layers = networks.networks_without_rules()[name]
    model = model.double().eval()
    x = torch.randint(0, 9, (7, 4)) if name == "words" else torch.randn(7, 6, dtype=torch.float64)
    y = torch.randint(0, model(x).shape[1], (7,))
    jacobians = reference.jacobians(model, x, layers)
    kernels = ah.tangent_kernels(model, x, outputs=outputs)
    assert set(kernels) == set(jacobians)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ah.DegenerateKernelWarning)
        report = ah.layerwise_alignment(model, x, y, outputs=outputs)
    labels = reference.label_kernel(y, model(x).shape[1], outputs)
    for layer, kernel in kernels.items():
        expected = reference.kernels_of_outputs(jacobians[layer], outputs)
        assert (kernel.to_dense() - expected).norm() <= 1e-10 * expected.norm()
        if reference.centered(expected).norm() <= 1e-12 * expected.norm():  # of a bias at the output, say
            assert torch.isnan(torch.tensor(report[layer]))
        else:
            assert report[layer] == pytest.approx(reference.cka(expected, labels), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("o", [1, 2, 10])
@pytest.mark.parametrize("depth", [2, 5, 30, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_depths_and_outputs(depth, o, bias):
    model = networks.mlp(depth, 12, 6, o, bias=bias).double()
    x = torch.randn(9, 6, dtype=torch.float64)
    y = torch.randn(9, o, dtype=torch.float64)
    jacobians = reference.jacobians(model, x)
    reports = ah.layerwise_alignment(model, x, y, centering=("global", "per_output"))
    for layer, jacobian in jacobians.items():
        for centering, report in reports.items():
            expected = reference.cka_of_features(jacobian, y, centering)
            assert report[layer] == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_fp32_kernels_of_a_deep_network_against_fp64_at_the_same_factors():
    """One output, depth 100: kernels within 1e-3 of constant."""
    model = networks.mlp(100, 256, 30, 1, bias=False)
    x = torch.randn(30) + 3e-5 * torch.randn(300, 30)
    y = torch.randint(0, 2, (300, 1)).double()
    spreads = []
    for kernel in ah.tangent_kernels(model, x, layers=[f"{i}" for i in range(0, 199, 22)]).values():
        expected = reference.kernel(kernel.factors[0].forward, kernel.factors[0].backward, 0.0)
        spreads.append(float((expected / expected.mean() - 1).abs().max()))
        alignment = reference.cka(expected, torch.outer(y.flatten(), y.flatten()))
        assert ah.cka(kernel, y) == pytest.approx(alignment, rel=1e-5)
        assert kernel.frobenius_norm() == pytest.approx(float(reference.centered(expected).norm()), rel=1e-5)
    assert min(spreads) < 1e-3  # the hard case is among them


def test_forward_and_backward_alignment():
    model = networks.mlp(4, 11, 6, 3, bias=True).double()
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.randint(0, 3, (20,))
    report = ah.layerwise_alignment(model, x, y, statistics=("forward_cka", "backward_cka"))
    targets = nn.functional.one_hot(y, 3).double()
    for i, kernel in enumerate(ah.tangent_kernels(model, x).values()):
        a, g = kernel.factors[0].forward[:, 0], kernel.factors[0].backward[:, 0].flatten(0, 1)
        forward, backward = a @ a.T + 1.0, g @ g.T
        assert torch.allclose(kernel.forward_gram().to_dense(), forward)
        assert torch.allclose(kernel.backward_gram().to_dense(), backward)
        expected = reference.cka(forward, targets @ targets.T)
        assert float(report.forward_cka[i]) == pytest.approx(expected, rel=1e-10)
        expected = reference.cka(backward, torch.outer(targets.flatten(), targets.flatten()))
        assert float(report.backward_cka[i]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("budget", [1, 20_000, 1 << 30])
@pytest.mark.parametrize("name", ["bias", "residual", "shared with bias"])
def test_any_memory_budget_gives_the_same(name, budget):
    model = networks.all_networks()[name]
    x = torch.randn(40, 6)
    y = torch.randint(0, 3, (40,))
    expected = ah.layerwise_alignment(model, x, y)
    assert ah.layerwise_alignment(model, x, y, memory_budget=budget).layers == expected.layers
    torch.testing.assert_close(
        ah.layerwise_alignment(model, x, y, memory_budget=budget).cka, expected.cka, rtol=1e-5, atol=1e-7
    )


def test_memory_budget_bounds_the_factors_held_at_once(monkeypatch):
    sizes = []
    original = run.Capture._pass

    def one_pass(capture, names):
        kept = original(capture, names)
        factors = [one.factors for one in kept.values()]
        sizes.append(sum(4 * (f.forward.numel() + f.backward.numel()) for f in factors))
        return kept

    monkeypatch.setattr(run.Capture, "_pass", one_pass)
    model, x = networks.mlp(6, 50, 6, 3, bias=True), torch.randn(100, 6)
    budget = 2 * 4 * 100 * (50 + 3 * 50)
    for _ in ah.iter_tangent_kernels(model, x, memory_budget=budget):
        pass
    assert len(sizes) > 1
    assert max(sizes) <= budget


def test_memory_budget_bounds_the_chunks_of_the_fallback(monkeypatch):
    sizes = []
    original = fallback._batched

    def batched(*arguments):
        gradients = original(*arguments)
        sizes.append(sum(one.nbytes for one in gradients.values()))
        return gradients

    monkeypatch.setattr(fallback, "_batched", batched)
    budget = 1 << 16
    ah.tangent_kernels(networks.Functional(), torch.randn(64, 6), layers="inner", memory_budget=budget)
    assert sum(sizes) == 64 * 3 * 42 * 4  # each sample once
    assert max(sizes) <= budget // 4


def test_slices_of_the_fallback_leave_room_for_the_kernel(monkeypatch):
    held = []
    original = fallback.add_products

    def add_products(kernel, jacobian, *rest):
        held.append(kernel.nbytes + jacobian.nbytes)
        original(kernel, jacobian, *rest)

    monkeypatch.setattr(fallback, "add_products", add_products)
    model, budget = networks.Functional(), 1 << 17
    model.inner, model.out = nn.Linear(50, 50), nn.Linear(50, 3)
    model, x = model.double(), torch.randn(8, 50, dtype=torch.float64)
    found, expected = (ah.tangent_kernels(model, x, layers="inner", memory_budget=one) for one in (budget, 1 << 30))
    torch.testing.assert_close(found["inner"].to_dense(), expected["inner"].to_dense(), rtol=1e-9, atol=1e-9)
    assert len(held) > 1
    assert max(held) <= budget - budget // 4  # beside a chunk of samples


def test_a_chunk_is_no_larger_than_what_keeps_a_processor_busy():
    of_sample, cpu = 1 << 20, torch.device("cpu")
    for budget in (1 << 27, 1 << 31, 1 << 35):
        memory = Memory(budget, 10_000, 3, 4, of_sample, cpu, 10_000)
        longest = max(one.stop - one.start for one in memory.chunks([], memory.samples))
        assert longest * 2 * of_sample <= min(budget // 4, 256 << 20)
        assert memory.work + memory.kept == budget


def test_layers_are_measured_in_batches_of_so_many_bytes():
    model, x = networks.mlp(9, 20, 6, 3, bias=True), torch.randn(50, 6)
    captured = list(start_capture(model, x, CaptureOptions()).kernels())
    factors = [one.kernel.factors[0] for one in captured]
    most = 3 * max(one.forward.nbytes + one.backward.nbytes for one in factors)
    assert [len(batch) for batch in layerwise._batches(iter(captured), most)] == [4, 3, 2]


def test_layers_are_gone_before_the_next_pass(monkeypatch):
    original, held = run.Capture._pass, []

    def one_pass(capture, names):
        assert [layer for layer, factor in held if factor() is not None] == []
        kept = original(capture, names)
        held.extend((name, weakref.ref(one.factors.backward)) for name, one in kept.items())
        return kept

    monkeypatch.setattr(run.Capture, "_pass", one_pass)
    model, x = networks.mlp(6, 50, 6, 3, bias=True), torch.randn(100, 6)
    budget = 2 * 4 * 100 * (50 + 3 * 50)
    report = ah.layerwise_alignment(model, x, torch.arange(100) % 3, memory_budget=budget, statistics=["backward_cka"])
    assert [layer for layer, _ in held] == report.layers


def test_chunks_of_samples_give_the_same(monkeypatch):
    from ahkernels.capture import memory

    model, x = networks.Shared(bias=True).double(), torch.randn(70, 6, dtype=torch.float64)
    y = torch.randint(0, 3, (70,))
    whole = ah.layerwise_alignment(model, x, y)
    monkeypatch.setattr(memory, "_CHUNK_BYTES", 1)
    torch.testing.assert_close(ah.layerwise_alignment(model, x, y).cka, whole.cka, rtol=1e-12, atol=0)


def test_operations_that_cannot_be_batched_over_cotangents():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z**2

        @staticmethod
        def backward(ctx, gradient):
            (z,) = ctx.saved_tensors
            assert gradient.sum().item() is not None  # no vmap through this
            return 2 * z * gradient

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.last(Square.apply(self.first(x)))

    class Plain(Model):
        def forward(self, x):
            return self.last(self.first(x) ** 2)

    model = Model().double()
    plain = Plain().double()
    plain.load_state_dict(model.state_dict())
    x, y = torch.randn(11, 6, dtype=torch.float64), torch.randint(0, 3, (11,))
    torch.testing.assert_close(ah.layerwise_alignment(model, x, y).cka, ah.layerwise_alignment(plain, x, y).cka)


def test_nothing_is_left_changed():
    model = networks.NormedEval()
    model.first.weight.requires_grad_(False)
    model(torch.randn(5, 6)).sum().backward()
    model.train()
    model.batch_norm.eval()
    model.dropout.p = 0.0
    x, y = torch.randn(10, 6, requires_grad=True), torch.randint(0, 3, (10,))
    state = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    requires = [p.requires_grad for p in model.parameters()]
    random_state = torch.get_rng_state()

    def check():
        assert torch.equal(torch.get_rng_state(), random_state)
        assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
        for before, parameter in zip(gradients, model.parameters(), strict=True):
            assert (before is None) == (parameter.grad is None)
            assert before is None or torch.equal(before, parameter.grad)
        assert flags == [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        assert requires == [p.requires_grad for p in model.parameters()]
        assert x.grad is None

    with torch.no_grad():
        ah.layerwise_alignment(model, x, y, layers=["first", "last"])
        assert not torch.is_grad_enabled()
    check()
    with torch.inference_mode():
        ah.layerwise_alignment(model, x.detach(), y, layers=["first", "last"])
    check()

    class Broken(RuntimeError):
        pass

    def broken(*_):
        torch.rand(3)
        raise Broken

    handle = model.dropout.register_forward_hook(broken)
    flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    with pytest.raises(Broken):
        ah.layerwise_alignment(model, x, y, layers=["first", "last"])
    check()
    handle.remove()


def test_modes_come_back_after_an_error():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.ReLU())
    model[1].eval()
    with pytest.raises(ZeroDivisionError), ah.evaluating(model):
        assert not model.training
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_hooks_of_the_user_see_and_change_what_they_would():
    model = networks.mlp(3, 8, 6, 2, bias=True).double()
    model[0].register_forward_hook(lambda module, args, output: output * 3)
    model[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    x, y = torch.randn(9, 6, dtype=torch.float64), torch.randint(0, 2, (9,))
    report = ah.layerwise_alignment(model, x, y)
    jacobians = reference.jacobians(model, x)
    for layer, jacobian in jacobians.items():
        expected = reference.cka(reference.kernels_of_outputs(jacobian, "all"), reference.label_kernel(y, 2, "all"))
        assert report[layer] == pytest.approx(expected, rel=1e-10)


def test_kernels_outlive_training():
    model, x = networks.mlp(3, 8, 6, 2, bias=True), torch.randn(9, 6)
    kernels = ah.tangent_kernels(model, x)
    before = kernels["2"].to_dense()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
        x.zero_()
    assert torch.equal(kernels["2"].to_dense(), before)


def test_layers_by_name_and_pattern():
    model = networks.NormedEval()
    x, y = torch.randn(9, 6), torch.randint(0, 3, (9,))
    assert ah.layerwise_alignment(model, x, y, layers="*st").layers == ["first", "last"]
    assert ah.layerwise_alignment(model, x, y, layers=["last", "fir*"]).layers == ["first", "last"]
    assert ah.layerwise_alignment(nn.Linear(6, 3), x, y).layers == ["(root)"]


def test_layers_come_in_forward_order():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(5, 3), nn.Linear(6, 5)

        def forward(self, x):
            return self.last(self.first(x))

    assert list(ah.tangent_kernels(Backwards(), torch.randn(4, 6))) == ["first", "last"]


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.ignored, self.uncalled = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        self.ignored(x)
        return self.used(x)


def test_layers_that_do_not_reach_the_output_have_a_zero_kernel_and_no_alignment():
    x, y = torch.randn(9, 6), torch.randint(0, 3, (9,))
    message = r"kernel is zero \(the output does not depend on it\) for 2 layers \('ignored', 'uncalled'\), so that"
    with pytest.warns(ah.DegenerateKernelWarning, match=message) as caught:
        report = ah.layerwise_alignment(Unreached(), x, y)
    assert len(caught) == 1
    assert math.isnan(report["ignored"]) and math.isnan(report["uncalled"])
    assert 0 < report["used"] < 1


class WithoutGradients(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        with torch.no_grad():
            h = self.features(x)
        return self.last(h)


def training_batch_norm():
    return nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))


def batch_statistics():
    return nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()


def training_dropout():
    return nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.1))


LINEAR = nn.Linear(6, 3)
X, Y = torch.zeros(4, 6), torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "model: expected a torch.nn.Module, got function", {"model": lambda x: x}),
        (ValueError, "model: expected modules with parameters, got ReLU without any", {"model": nn.ReLU()}),
        (ValueError, "initialised parameters, got '0.weight' of a lazy", {"model": nn.Sequential(nn.LazyLinear(3))}),
        (
            ValueError,
            "real floating-point parameters, got 'weight' of dtype torch.complex64",
            {"model": nn.Linear(6, 3, dtype=torch.complex64)},
        ),
        (
            ValueError,
            r"BatchNorm1d '1' with the statistics of its batch; call model.eval\(\) first$",
            {"model": training_batch_norm(), "layers": "0"},
        ),
        (ValueError, "track_running_stats=True", {"model": batch_statistics(), "layers": "0"}),
        (
            ValueError,
            r"Dropout '1' in training mode; call model.eval\(\) first",
            {"model": training_dropout()},
        ),
        (
            ValueError,
            r"model\(x\) to be a tensor \[2, o\] for 2 samples, got shape \[6\]",
            {"model": nn.Sequential(LINEAR, nn.Flatten(0))},
        ),
        (
            ValueError,
            r"output: expected a callable .* it returns tuple with several tensors \(\[0\] \[2, 3\], \[1\] \[1, 3\]\)",
            {"model": nn.Sequential(LINEAR, nn.RNN(3, 3)), "layers": "0"},
        ),
        (ValueError, "gradients to flow through layer 'features'", {"model": WithoutGradients()}),
        (TypeError, "x: expected a tensor", {"x": [[0.0] * 6]}),
        (ValueError, r"x: expected at least one sample, got shape \[0, 6\]", {"x": torch.zeros(0, 6)}),
        (
            ValueError,
            "x: expected the dtype of the model, torch.float32, got torch.float64",
            {"x": X.double()},
        ),
        (ValueError, "x: expected the device of the model, cpu, got meta", {"x": X.to("meta")}),
        (ValueError, "x: expected finite numbers, got nan or inf", {"x": torch.full((4, 6), float("nan"))}),
        (TypeError, "y: expected a tensor of class indices", {"y": [0, 1, 2, 1]}),
        (ValueError, "y: expected 4 class indices, one for each sample of x, got 3", {"y": Y[:3]}),
        (
            ValueError,
            r"y: expected class indices from 0 to 2 \(the network has 3 outputs\), got 3",
            {"y": Y + 1},
        ),
        (ValueError, "got -1", {"y": Y - 1}),
        (
            ValueError,
            r"y: expected integer class indices in a tensor \[n\], got dtype torch.float32",
            {"y": Y.float()},
        ),
        (
            ValueError,
            r"y: expected a target matrix \[n, o\] = \[4, 3\], got \[4, 2\]",
            {"y": torch.zeros(4, 2)},
        ),
        (ValueError, "y: expected finite targets", {"y": torch.full((4, 3), float("inf"))}),
        (ValueError, r"or a target matrix \[n, o\], got shape \[4, 1, 1\]", {"y": torch.zeros(4, 1, 1)}),
        (ValueError, r"got 'fc1', which matches none; nearest: '\(root\)'", {"layers": ["fc1"]}),
        (
            ValueError,
            "nearest: 'hidden.0'",
            {"model": nn.ModuleDict({"hidden": nn.Sequential(LINEAR)}), "layers": "hiden.0"},
        ),
        (ValueError, "layers: expected at least one name, pattern or type, got none", {"layers": []}),
        (TypeError, "layers: expected names, patterns or types of layers, got 3", {"layers": 3}),
        (ValueError, "layers: expected at least one group, got none", {"layers": {}}),
        (TypeError, "layers: expected names of groups, got 3", {"layers": {3: "*"}}),
        (ValueError, r"layers\['all'\]: expected names or patterns of layers .* got 'fc1'", {"layers": {"all": "fc1"}}),
        (
            ValueError,
            "got MultiheadAttention '1' in training mode",
            {"model": nn.Sequential(LINEAR, nn.MultiheadAttention(3, 1, dropout=0.1))},
        ),
        (
            ValueError,
            "leave parameters as they are, got Embedding '0' with max_norm",
            {"model": nn.Sequential(nn.Embedding(9, 3, max_norm=1.0))},
        ),
        (ValueError, 'outputs: expected "all", "trace", "sum", an output index', {"outputs": "each"}),
        (ValueError, "outputs: expected indices from 0 to 2, got 3", {"outputs": 3}),
        (ValueError, "outputs: expected indices from 0 to 2, got -1", {"outputs": [0, -1]}),
        (ValueError, "outputs: expected each index once", {"outputs": [1, 1]}),
        (ValueError, "got an empty sequence", {"outputs": []}),
        (TypeError, "outputs: expected", {"outputs": 1.0}),
        (
            ValueError,
            'precision: expected "highest", "high", "medium" or None, got \'low\'',
            {"precision": "low"},
        ),
        (ValueError, "memory_budget: expected a positive number of bytes, got 0", {"memory_budget": 0}),
        (TypeError, "memory_budget: expected a number of bytes, got 1.5", {"memory_budget": 1.5}),
        (TypeError, "memory_budget: expected a number of bytes, got None", {"memory_budget": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(error, message, change):
    arguments = {"model": LINEAR, "x": X, "y": Y, **change}
    with pytest.raises(error, match=message):
        ah.layerwise_alignment(**arguments)
    if "y" not in change:
        del arguments["y"]
        with pytest.raises(error, match=message):
            ah.tangent_kernels(**arguments)


def test_nan_in_a_factor_names_the_layer():
    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.last(self.first(x) * 3e38 * 3e38)

    expected = "factors of kernel of layer 'last': expected finite numbers, got nan or inf"
    with pytest.raises(ah.NonFiniteError, match=expected):
        ah.layerwise_alignment(Overflowing(), torch.randn(4, 6), Y, layers="last")


def test_progress_goes_to_stderr(capsys):
    ah.layerwise_alignment(networks.mlp(3, 8, 6, 3, bias=True), torch.randn(4, 6), Y, progress=True)
    captured = capsys.readouterr()
    assert "layers" in captured.err and "3/3" in captured.err
    assert captured.out == ""


def test_groups_of_layers():
    model = networks.all_networks()["convolutional"].double()
    x, y = torch.randn(12, 6, dtype=torch.float64), torch.randint(0, 3, (12,))
    jacobians = reference.jacobians(model, x)
    groups = {"last": ["13"], "norms": ["2", "5", "8"], "everything": "*", "first": ["1", "2"]}
    members = {**groups, "everything": list(jacobians)}
    order = ["everything", "first", "norms", "last"]  # by their first layers; the sort is stable
    for budget in (1, 1 << 30):
        for outputs in ("all", "trace", 1):
            kernels = dict(ah.iter_tangent_kernels(model, x, layers=groups, outputs=outputs, memory_budget=budget))
            reports = ah.layerwise_alignment(
                model, x, y, layers=groups, outputs=outputs, memory_budget=budget, centering=BOTH
            )
            assert list(kernels) == order == reports["global"].layers
            labels, o = reference.label_kernel(y, 3, outputs), 3 if outputs == "all" else 1
            for name, kernel in kernels.items():
                whole = torch.cat([jacobians[layer] for layer in members[name]], 2)
                expected = reference.kernels_of_outputs(whole, outputs)
                assert (kernel.to_dense() - expected).norm() <= 1e-10 * expected.norm()
                assert kernel.trace() == pytest.approx(float(expected.trace()), rel=1e-10)
                v = torch.randn(len(expected), 2, dtype=torch.float64)
                assert (kernel @ v - expected @ v).norm() <= 1e-10 * expected.norm() * v.norm()
                for centering, report in reports.items():
                    assert report[name] == pytest.approx(reference.cka(expected, labels, centering, o), rel=1e-10)
                    assert report[name] == pytest.approx(ah.cka(kernel, y, centering=centering), rel=1e-12)
    two = ah.cka(kernels["first"], kernels["last"])
    dense = [kernels[name].to_dense() for name in ("first", "last")]
    assert two == pytest.approx(reference.cka(*dense), rel=1e-10)


def test_forward_and_backward_gram_of_layers_with_positions():
    model = networks.all_networks()["tokens"].double()
    x, y = torch.randn(12, 6, dtype=torch.float64), torch.randint(0, 4, (12,))
    report = ah.layerwise_alignment(model, x, y, statistics=("forward_cka", "backward_cka"))
    kernels = ah.tangent_kernels(model, x, keep_factors=True)
    targets = nn.functional.one_hot(y, 4).double()
    for i, (name, kernel) in enumerate(kernels.items()):
        if name in ("norm", "rms"):
            assert not kernel.factored
            with pytest.raises(ValueError, match=f"forward_gram: expected .* got layer '{name}' as its Jacobian"):
                kernel.forward_gram()
            assert torch.isnan(report.forward_cka[i]) and torch.isnan(report.backward_cka[i])
            continue
        a, g, bias = kernel.factors[0].forward, kernel.factors[0].backward, float(kernel.factors[0].bias)
        forward, backward = reference.forward_gram(a, bias), reference.backward_gram(g)
        for found, expected in ((kernel.forward_gram(), forward), (kernel.backward_gram(), backward)):
            assert (found.to_dense() - expected).norm() <= 1e-12 * expected.norm()
        assert float(report.forward_cka[i]) == pytest.approx(reference.cka(forward, targets @ targets.T), rel=1e-10)
        labels = torch.outer(targets.flatten(), targets.flatten())
        assert float(report.backward_cka[i]) == pytest.approx(reference.cka(backward, labels), rel=1e-10)
    with pytest.raises(ValueError, match=r"backward_gram: expected .* capture with keep_factors=True"):
        ah.tangent_kernels(model, x, keep_factors=False)["norm"].backward_gram()
