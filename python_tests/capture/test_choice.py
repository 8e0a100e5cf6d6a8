"""The argument `layers`: names, patterns, types, "trainable" and groups of them, and the name of the model itself."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import Tensor, nn

import ahkernels as ah


class Scaled(nn.Linear):
    """A subclass."""


class Mixed(nn.Module):
    """Layers of several types, and a parameter of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(()) + 1)
        self.convolution, self.norm = nn.Conv1d(2, 3, 2), nn.GroupNorm(1, 3)
        self.hidden, self.out = Scaled(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.convolution(self.scale * x.view(-1, 2, 3)))
        return self.out(torch.tanh(self.hidden(h.flatten(1))))


X, Y = torch.randn(7, 6), torch.arange(7) % 3
LINEAR = ["Scaled", "Linear"]
ALL = ["(root)", "convolution", "norm", "hidden", "out"]


def chosen(layers: object, model: nn.Module | None = None) -> list[str]:
    return list(ah.tangent_kernels(Mixed() if model is None else model, X, layers=layers))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ALL),
        (nn.Linear, ["hidden", "out"]),
        (Scaled, ["hidden"]),
        ((nn.Conv1d, nn.GroupNorm), ["convolution", "norm"]),
        (["out", nn.Conv1d, "n*"], ["convolution", "norm", "out"]),
        (nn.Module, ALL),
        (Mixed, ["(root)"]),
        ("(root)", ["(root)"]),
        ("*", ALL),
        ({"linear": nn.Linear, "first": ["(root)", nn.Conv1d], "trained": "trainable"}, ["first", "trained", "linear"]),
    ],
)
def test_forms(layers, expected):
    assert sorted(chosen(layers)) == sorted(expected)


def test_a_group_of_a_type_is_the_sum_of_its_layers():
    model = Mixed().double()
    kernels = ah.tangent_kernels(model, X.double())
    (linear,) = ah.tangent_kernels(model, X.double(), layers={"linear": nn.Linear}).values()
    torch.testing.assert_close(linear.to_dense(), kernels["hidden"].to_dense() + kernels["out"].to_dense())


def test_trainable_layers():
    model = Mixed()
    model.scale.requires_grad_(False)
    model.convolution.requires_grad_(False)
    model.hidden.bias.requires_grad_(False)  # one parameter is enough, and all of them are measured
    assert chosen("trainable", model) == ["norm", "hidden", "out"]
    whole = ah.tangent_kernels(model, X)["hidden"].to_dense()
    assert torch.equal(ah.tangent_kernels(model, X, layers="trainable")["hidden"].to_dense(), whole)
    assert chosen(["trainable", "convolution"], model) == ["convolution", "norm", "hidden", "out"]
    with pytest.raises(ValueError, match="expected a layer with a parameter that requires gradients, got none; leave"):
        chosen("trainable", model.requires_grad_(False))


def test_a_layer_that_is_named_trainable():
    model = nn.Sequential()
    model.add_module("first", nn.Linear(6, 4))
    model.add_module("trainable", nn.Linear(4, 3))
    assert chosen("trainable", model) == ["trainable"]


@pytest.mark.parametrize(
    ("error", "message", "layers"),
    [
        (
            ValueError,
            r"layers: .* got Conv2d, which matches none; types: Mixed, Conv1d, GroupNorm, Scaled, Linear",
            nn.Conv2d,
        ),
        (ValueError, r"layers\['a'\]: expected types of layers with parameters, got Conv2d", {"a": ["out", nn.Conv2d]}),
        (TypeError, "layers: expected names, patterns or types of layers, got <class 'int'>", int),
        (TypeError, "layers: expected names, patterns or types of layers, got ", nn.Linear(1, 1)),
        (ValueError, "layers: expected at least one name, pattern or type, got none; leave layers= out", ()),
        (ValueError, "nearest: '\\(root\\)'", "root"),
    ],
)
def test_what_chooses_nothing(error, message, layers):
    with pytest.raises(error, match=message):
        chosen(layers)


def test_the_name_of_the_model_itself(tmp_path):
    model = Mixed()
    report = ah.layerwise_alignment(model, X, Y)
    assert 0 < report["(root)"] < 1 and "  (root) " in str(report) and "cka/(root)" in report.row()
    assert ah.explain(model, X)[0].layer == "(root)" and "(root)" in report.certificate.differences
    tracker = ah.AlignmentTracker(model, X, Y)
    tracker.update(0)
    tracker.save(tmp_path / "run.csv")
    with (tmp_path / "run.csv").open(newline="") as file:
        assert next(row["layer"] for row in csv.DictReader(file)) == "(root)"
    assert list(ah.tangent_kernels(nn.Linear(6, 3), X)) == ["(root)"]


def test_a_module_with_the_name_of_the_model_itself():
    model = Mixed()
    model.add_module("(root)", nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"expected no module named '\(root\)', .* give it another name"):
        chosen(None, model)


def test_modules_that_are_refused_have_a_name():
    with pytest.raises(ValueError, match=r"got BatchNorm1d '\(root\)' with the statistics of its batch"):
        ah.tangent_kernels(nn.BatchNorm1d(6), X)


def test_kinds_of_layers_and_groups() -> None:
    report = ah.layerwise_alignment(Mixed(), X, Y)
    assert report.kinds == [one.kind for one in ah.explain(Mixed(), X)] == ["Mixed", "Conv1d", "GroupNorm", *LINEAR]
    groups = {"body": ["convolution", "norm"], "dense": ["hidden"], "ends": ["(root)", "out"], "linear": nn.Linear}
    grouped = ah.layerwise_alignment(Mixed(), X, Y, layers=groups)
    assert dict(zip(grouped.layers, grouped.kinds, strict=True)) == {
        "ends": "",
        "body": "",
        "dense": "Scaled",
        "linear": "",
    }


def test_chosen_layers_come_in_the_order_of_the_model():
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(12)))
    assert chosen(["10", "2"], model) == ["2", "10"]
