"""Pictures of spectra."""

from __future__ import annotations

import pytest
import torch
from matplotlib import pyplot

import ahkernels as ah
from python_tests.plotting.reports import SOME, require_readable, texts_of_legend


def dots(ax):
    """Where the stable ranks are."""
    return [line.get_xydata()[0].tolist() for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]


@pytest.mark.parametrize("layers", SOME.values(), ids=SOME)
def test_everything_can_be_read(layers):
    index = torch.arange(1.0, 50)
    ax = ah.plot_spectrum({name: 1 / (index + place) for place, (name, _) in enumerate(layers)})
    require_readable(ax.figure)


def test_curves_are_on_logarithmic_axes_from_the_largest_down():
    ax = ah.plot_spectrum({"fc1": torch.tensor([1.0, 4.0, 2.0]), "fc2": torch.tensor([3.0, 1.0])})
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    curves = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert curves["fc1"] == [[1, 4], [2, 2], [3, 1]]
    assert texts_of_legend(ax) == ["fc1", "fc2", "stable rank"]
    assert dots(ax)[0][0] == pytest.approx(1 + 1 / 4 + 1 / 16)


def test_dots_are_on_the_curve():
    values = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.1])
    ((rank, height),) = dots(ah.plot_spectrum(values))
    assert rank == pytest.approx(4.01) and 0.9 < height < 1
    assert dots(ah.plot_spectrum(torch.ones(3))) == [[3, 1]]
    assert dots(ah.plot_spectrum(torch.tensor([2.0]))) == [[1, 2]]


def test_the_stable_rank_is_that_of_the_kernel():
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 3)), torch.randn(10, 4)
    kernel = ah.tangent_kernels(model, x)["0"]
    ((rank, _),) = dots(ah.plot_spectrum(ah.eigenvalues(kernel, k=30)))
    assert rank == pytest.approx(ah.stable_rank(kernel), rel=1e-6)


def test_zeros_do_not_show():
    ax = ah.plot_spectrum({"a": torch.tensor([1.0, 0.0, 1e-11, -1e-18]), "dead": torch.zeros(3)})
    assert ax.lines[0].get_xydata().tolist() == [[1, 1]]
    assert len(dots(ax)) == 1
    require_readable(ax.figure)


def test_many_layers_have_a_bar_of_colours():
    ax = ah.plot_spectrum({f"fc{layer}": torch.tensor([2.0, 1.0]) for layer in range(9)})
    assert texts_of_legend(ax) == ["stable rank"]
    assert [one.get_title("right") for one in ax.figure.axes] == ["", "layer"]


def test_on_given_axes_twice():
    ax = pyplot.subplots()[1]
    assert ah.plot_spectrum(torch.ones(3), ax) is ah.plot_spectrum({"fc": torch.ones(3)}, ax) is ax
    assert texts_of_legend(ax) == ["stable rank", "fc"]


@pytest.mark.parametrize(
    ("eigenvalues", "message"),
    [
        ({}, "eigenvalues: expected those of at least one layer, got none"),
        (torch.ones(2, 2), r"eigenvalues: expected shape \[k\], got \[2, 2\]"),
        ({"fc1": torch.tensor(1.0)}, r"eigenvalues: expected shape \[k\] of layer 'fc1', got \[\]"),
    ],
)
def test_mistakes(eigenvalues, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ah.plot_spectrum(eigenvalues)
    assert not pyplot.get_fignums()
