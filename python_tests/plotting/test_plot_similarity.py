"""Pictures of similarities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import pyplot

import ahkernels as ah
from python_tests.plotting.reports import NAN, SOME, require_readable, x_labels


def y_labels(ax, minor=False):
    return [label.get_text() for label in ax.get_yticklabels(minor=minor)]


@pytest.mark.parametrize("layers", SOME.values(), ids=SOME)
def test_everything_can_be_read(layers):
    x = torch.linspace(0, 1, len(layers))
    ax = ah.plot_similarity(torch.exp(-((x - x[:, None]) ** 2)), [name for name, _ in layers])
    require_readable(ax.figure)


def test_cells_are_at_their_layers_from_the_top_down():
    matrix = torch.tensor([[1.0, 0.5], [NAN, 1.0]])
    ax = ah.plot_similarity(matrix, ["fc1", "fc2"])
    (image,) = ax.images
    assert np.array_equal(image.get_array().filled(-1), [[1, 0.5], [-1, 1]]), "nan is masked"
    assert image.get_clim() == (0, 1) and list(image.get_extent()) == [0.5, 2.5, 2.5, 0.5]
    assert image.cmap.get_bad()[:3] == pytest.approx([0.7] * 3)
    assert x_labels(ax) == y_labels(ax) == ["fc1", "fc2"] and ax.get_yticks().tolist() == [1, 2]


def test_of_two_networks():
    matrix = torch.eye(2, 3)
    ax = ah.plot_similarity(matrix, ["a", "b"], others=["x", "y", "z"])
    assert y_labels(ax) == ["a", "b"] and x_labels(ax) == ["x", "y", "z"]
    assert x_labels(ah.plot_similarity(matrix, ["a", "b"])) == ["1", "2", "3"], "these have no names"
    assert y_labels(ah.plot_similarity(torch.eye(2), others=["x", "y"])) == ["1", "2"]


def test_on_given_axes_twice_and_less_than_zero():
    ax = pyplot.subplots()[1]
    for _ in range(2):
        assert ah.plot_similarity(torch.tensor([[1, -0.25], [-0.25, 1]]), ax=ax) is ax
    assert [image.get_clim() for image in ax.images] == [(-0.25, 1)] * 2


@pytest.mark.parametrize(
    ("matrix", "names", "message"),
    [
        (torch.ones(3), {}, r"matrix: expected \[L, L'\], the similarity of kernels, got shape \[3\]"),
        (torch.ones(0, 0), {}, r"matrix: expected .* got shape \[0, 0\]"),
        (torch.ones(2, 2), {"layers": ["a"]}, "layers: expected a name for each row of the matrix, 2, got 1"),
        (torch.ones(2, 3), {"others": ["a"]}, "others: expected a name for each column of the matrix, 3, got 1"),
    ],
)
def test_mistakes(matrix, names, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ah.plot_similarity(matrix, **names)
    assert not pyplot.get_fignums()
