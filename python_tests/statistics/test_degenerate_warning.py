"""One warning for all layers of a call without an alignment, and in a tracker none again for the same layers."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import ahkernels as ah
from ahkernels.statistics.degenerate import RoundingBound

X, Y = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3


class Branches(nn.Module):
    """Many layers, whose outputs are multiplied by numbers that a test sets."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(4, 3) for _ in range(count))
        self.factors = [0.0] * count
        self.last, self.factor = nn.Linear(4, 3), 1.0

    def forward(self, x: Tensor) -> Tensor:
        branches = zip(self.factors, self.branches, strict=True)
        return self.factor * self.last(x) + sum(factor * branch(x) for factor, branch in branches)


def warned(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(issubclass(one.category, ah.DegenerateKernelWarning) and one.filename == __file__ for one in caught)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(("centering", "rows"), [("global", 27), ("per_output", 9)])
def test_what_counts_as_rounding(centering: str, rows: int):
    """64 units of rounding in the mean of so many entries; kernels centered per output are made in float64."""
    (kernel,) = ah.tangent_kernels(nn.Linear(4, 3), X).values()
    bound = RoundingBound.of(kernel, centering)
    unit = torch.finfo(torch.float64 if centering == "per_output" else torch.float32).eps / rows
    assert [bound.exceeded_by(units * unit * 5.0, -5.0) for units in (1, 60, 68)] == [False, False, True]


def test_one_warning_names_some_of_many_layers():
    names = ", ".join(f"'branches.{i}'" for i in range(8))
    expected = f"kernel is zero for 30 layers ({names} and 22 more), so that the alignment is not defined (nan)"
    model = Branches(30)
    assert warned(lambda: ah.layerwise_alignment(model, X, Y)) == [expected]
    assert warned(lambda: ah.layerwise_alignment(model, X, Y, centering=("global", "per_output"))) == [expected]
    assert warned(lambda: ah.layerwise_alignment(model, X, Y, products=8)) == [expected]


def test_a_tracker_warns_of_a_layer_once():
    model = Branches(3)
    tracker = ah.AlignmentTracker(model, X, Y)
    assert ["3 layers" in one for one in warned(lambda: tracker.update(0))] == [True]
    assert warned(lambda: [tracker.update(step) for step in range(1, 5)]) == []
    model.factors[1], model.factor = 1.0, 0.0
    messages = warned(lambda: tracker.update(5))
    assert messages == ["kernel of layer 'last' is zero, so that the alignment is not defined (nan)"]


def test_several_reasons_in_one_warning():
    model = Branches(1)
    model.branches[0].weight.data.zero_()
    constant = torch.ones(9, 4)
    (message,) = warned(
        lambda: ah.layerwise_alignment(model, constant, Y, statistics=["backward_cka"], outputs="trace")
    )
    assert message.startswith("kernel is constant for 2 layers ('last', 'last (backward Gram)'); ")
    assert "; kernel is zero for 2 layers ('branches.0', 'branches.0 (backward Gram)'), so that" in message
    assert message.count("so that the alignment is not defined") == 1


def test_labels_are_told_once_for_all_layers():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    messages = warned(lambda: ah.layerwise_alignment(model, X, torch.zeros(9, 3)))
    assert messages == ["y is the same in all rows of the kernel, so that the alignment is not defined (nan)"]


def test_layers_that_nothing_depends_on():
    """They are told by kernels, too, and within groups."""
    model = Branches(2)
    model.forward = lambda x: model.last(x)
    expected = (
        "kernel is zero (the output does not depend on it) for 2 layers ('branches.0', 'branches.1'), so that the "
        "alignment is not defined (nan)"
    )
    assert warned(lambda: ah.tangent_kernels(model, X)) == [expected]
    assert warned(lambda: list(ah.iter_tangent_kernels(model, X, memory_budget=1))) == [expected]
    assert warned(lambda: ah.layerwise_alignment(model, X, Y)) == [expected]
    assert warned(lambda: ah.layerwise_alignment(model, X, Y, layers={"all": "*"})) == [expected]


def test_single_kernels_and_pairs_of_them():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ah.DegenerateKernelWarning)
        kernels = ah.tangent_kernels(Branches(2), X)
    zero = kernels["branches.0"]
    for call in (lambda: ah.cka(zero, Y), lambda: ah.label_correlation(zero, Y)):
        assert warned(call) == ["kernel of layer 'branches.0' is zero, so that the alignment is not defined (nan)"]
    (message,) = warned(lambda: ah.similarity(kernels))
    assert message.startswith("kernel is zero for 2 layers ('branches.0', 'branches.1'), so that")


def test_no_warning_after_an_error():
    model = Branches(2)
    tracker = ah.AlignmentTracker(model, X, torch.zeros(9, 3, 1))

    def fails():
        with pytest.raises(ValueError, match="y: expected"):
            tracker.update(0)

    assert warned(fails) == []
    tracker.y = Y
    assert len(warned(lambda: tracker.update(0))) == 1
