"""Pictures of reports."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from python_tests.plotting.reports import (
    NAN,
    NETWORKS,
    mlp,
    report,
    require_readable,
    resnet50,
    texts_of_legend,
    vit,
    x_labels,
)

THREE = [("fc1", "Linear"), ("norm", "LayerNorm"), ("fc2", "Linear")]
VALUES = [0.125, 0.5, 0.25]


def points(ax: Axes) -> dict[float, float]:
    """Where the markers of layers are."""
    found = [place for one in ax.collections for place in np.asarray(one.get_offsets()) if place.any()]
    return {float(x): float(y) for x, y in found}


def line(ax: Axes, label: str) -> Any:
    (found,) = [one for one in ax.lines if one.get_label() == label]
    return found


@pytest.mark.parametrize("layers", NETWORKS.values(), ids=NETWORKS)
def test_everything_can_be_read(layers: list[tuple[str, str]]) -> None:
    values = report(layers).cka
    values[:2] = NAN
    require_readable(report(layers, values.tolist(), forward_cka=values, backward_cka=values).plot(null=0.2).figure)


def test_few_layers_have_their_names_and_a_ring_is_around_the_peak() -> None:
    ax = report(THREE, VALUES).plot()
    assert x_labels(ax) == ["fc1", "norm", "fc2"] and not x_labels(ax, minor=True)
    assert "layer" in ax.get_xlabel() and "CKA" in ax.get_ylabel()
    assert points(ax) == {1: 0.125, 2: 0.5, 3: 0.25}
    assert line(ax, "peak: norm").get_xydata().tolist() == [[2, 0.5]]
    assert ax.get_ylim()[0] <= 0 and 0.5 < ax.get_ylim()[1] < 0.6


def test_names_that_are_too_long_to_stand_side_by_side_are_slanted() -> None:
    ax = report(NETWORKS["names"]).plot()
    assert x_labels(ax) == [f"fc{layer}" for layer in range(1, 21)]
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {40}


def test_small_axes_have_a_short_label() -> None:
    small, large = pyplot.subplots(2, 1, height_ratios=[1, 4])[1]
    assert report(THREE, VALUES).plot(small).get_ylabel() == "alignment (CKA)"
    assert report(THREE, VALUES).plot(large).get_ylabel() == "alignment with the labels (CKA)"


def test_long_names_lose_what_all_share() -> None:
    labels = x_labels(report(NETWORKS["long names"]).plot())
    assert labels == [f"…part{layer}" for layer in range(8)]


def test_kinds_have_markers_and_colours() -> None:
    ax = report(THREE, VALUES).plot()
    assert texts_of_legend(ax)[:2] == ["LayerNorm", "Linear"]
    handles = dict(zip(texts_of_legend(ax), ax.get_legend().legend_handles, strict=True))
    assert handles["Linear"].get_marker() != handles["LayerNorm"].get_marker()
    colours = {float(one.get_offsets()[0][0]): tuple(one.get_facecolor()[0]) for one in ax.collections[1:]}
    assert colours == {1: to_rgba(handles["Linear"].get_color()), 2: to_rgba(handles["LayerNorm"].get_color())}


def test_types_of_one_kind_go_together_and_unknown_ones_are_named() -> None:
    types = ["BatchNorm2d", "LayerNorm", "Conv1D", "Conv2d", "LSTM", "MultiheadAttention", "Embedding", "Scale", ""]
    layers = [(f"a{index}", kind) for index, kind in enumerate(types)]
    expected = ["MultiheadAttention", "norm", "Embedding", "Conv1D", "Conv2d", "LSTM", "Scale", "unknown or mixed"]
    assert texts_of_legend(report(layers).plot())[:8] == expected


def test_without_kinds_the_legend_has_none() -> None:
    assert texts_of_legend(report([("a", ""), ("b", "")], [0.1, 0.2]).plot()) == ["peak: b"]


def test_blocks_of_a_transformer_are_numbered_and_shaded() -> None:
    ax = report(vit()).plot()
    assert x_labels(ax, minor=True) == [str(number) for number in range(12)]
    assert ax.get_xticks(minor=True).tolist() == [5.5 + 6 * number for number in range(12)]
    assert x_labels(ax) == ["patch_embed, …", "blocks", "norm, head"]
    bands = [patch.get_extents().transformed(ax.transData.inverted()).bounds for patch in ax.patches]
    assert [(round(x, 6), round(width, 6)) for x, _, width, _ in bands] == [
        *((2.5 + 12 * number, 6) for number in range(6)),
        (74.5, 2),
    ]


def test_stages_of_a_convolutional_network_stand_below_their_blocks() -> None:
    ax = report(resnet50()).plot()
    assert x_labels(ax) == ["conv1, bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert x_labels(ax, minor=True) == list("012" + "0123" + "012345" + "012")
    upright = [line.get_xdata() for line in ax.lines if list(line.get_ydata()) == [0, 1]]
    separators = [begin for begin, end in upright if begin == end]
    assert separators == [2.5, 22.5, 48.5, 86.5, 106.5]


def test_many_plain_layers_have_round_numbers_at_their_places() -> None:
    ax = report(mlp(300)).plot()
    labels, places = x_labels(ax, minor=True), ax.get_xticks(minor=True)
    assert labels == [str(50 * number) for number in range(12)]
    assert places.tolist() == [1 + 25 * number for number in range(12)]
    assert not ax.patches, "blocks of one layer are not shaded"


def test_odd_numbers_of_layers_are_thinned_out_too() -> None:
    ax = report([(str(2 * layer + 1), "Linear") for layer in range(200)]).plot()
    assert x_labels(ax, minor=True) == ["1", "51", "101", "151", "201", "251", "301", "351"]
    assert ax.get_xticks(minor=True).tolist() == [1, 26, 51, 76, 101, 126, 151, 176] and not x_labels(ax)


def test_layers_without_an_alignment_have_a_cross_at_the_bottom() -> None:
    ax = report(THREE, [NAN, 0.5, NAN]).plot()
    crosses = line(ax, "not defined (nan)")
    assert crosses.get_marker() == "x" and crosses.get_xdata() == [1, 3]
    below = ax.transAxes.inverted().transform(crosses.get_transform().transform(crosses.get_xydata()))[:, 1]
    assert (below > 0).all() and (below < 0.05).all()
    assert "not defined (nan)" not in texts_of_legend(report(THREE, VALUES).plot())


def test_nothing_but_nan() -> None:
    ax = report(THREE, [NAN] * 3).plot()
    assert texts_of_legend(ax) == ["LayerNorm", "Linear", "not defined (nan)"], "there is no peak"
    assert ax.get_ylim()[0] <= 0 and ax.get_ylim()[1] >= 1
    require_readable(ax.figure)


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_layer(count: int) -> None:
    ax = report(mlp(count)).plot(null=[0.1] * count)
    assert x_labels(ax) == ["0"][:count]
    require_readable(ax.figure)


def test_negative_alignments_are_not_cut_off() -> None:
    assert report(THREE, [-0.3, 0.1, 0.2]).plot().get_ylim()[0] < -0.3


@pytest.mark.parametrize(
    ("null", "levels"),
    [
        (0.1, [0.1, 0.1, 0.1]),
        (torch.tensor(0.1, dtype=torch.float64), [0.1, 0.1, 0.1]),
        (torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), [0.1, 0.2, 0.3]),
        (np.array([0.1, 0.2, 0.3]), [0.1, 0.2, 0.3]),
        ([0.1, 0.2, NAN], [0.1, 0.2, NAN]),
        (report(THREE, [0.3, 0.2, 0.1]), [0.3, 0.2, 0.1]),
    ],
)
def test_null_level_goes_from_end_to_end(null: Any, levels: list[float]) -> None:
    ax = report(THREE, VALUES).plot(null=null)
    x, y = line(ax, "null level").get_data()
    assert list(x) == [ax.get_xlim()[0], 1, 2, 3, ax.get_xlim()[1]]
    assert np.array_equal(y, [levels[0], *levels, levels[-1]], equal_nan=True)
    assert "null level" in texts_of_legend(ax)


@pytest.mark.parametrize(
    ("null", "error", "got"),
    [
        ([0.1, 0.2], ValueError, r"got shape \[2\]"),
        (torch.zeros(3, 1), ValueError, r"got shape \[3, 1\]"),
        (report(mlp(3)), ValueError, r"got \['0', '2', '4'\]"),
        ("high", TypeError, "got 'high'"),
        (object(), TypeError, "got <object"),
    ],
)
def test_null_level_of_something_else(null: Any, error: type[Exception], got: str) -> None:
    expected = "^null: expected a number, one for each of the 3 layers or a report of the same layers, "
    with pytest.raises(error, match=expected + got):
        report(THREE, VALUES).plot(null=null)
    assert not pyplot.get_fignums(), "there is no empty figure"


def test_grams_have_an_axis_of_their_own_and_lines_through_layers_that_have_none() -> None:
    forward, backward = torch.tensor([0.6, NAN, 0.9]), torch.tensor([0.8, NAN, NAN])
    ax = report(THREE, VALUES, forward_cka=forward, backward_cka=backward).plot()
    (other,) = [one for one in ax.figure.axes if one is not ax]
    assert other.get_ylabel() == "Gram alignment" and other.get_ylim()[1] > 0.9 > 0.6 > ax.get_ylim()[1]
    assert line(other, "forward Gram").get_xydata().round(4).tolist() == [[1, 0.6], [3, 0.9]]
    assert [one.get_linestyle() for one in other.lines] == ["--", ":"]
    assert texts_of_legend(ax)[-2:] == ["forward Gram", "backward Gram"]


def test_standard_errors_are_lines_around_the_points() -> None:
    ax = report(THREE, VALUES, cka_standard_error=torch.tensor([0.01, 0.02, NAN])).plot()
    segments = ax.collections[0].get_segments()
    assert np.allclose(segments[1], [[2, 0.48], [2, 0.52]])


def test_two_reports_on_the_same_axes() -> None:
    figure, ax = pyplot.subplots(layout="constrained")
    grams = {"forward_cka": torch.tensor(VALUES)}
    assert report(THREE, VALUES, **grams).plot(ax) is ax
    assert report(THREE, [0.9, 0.8, 0.7], **grams).plot(ax) is ax
    assert len(figure.axes) == 2, "both have the same axis for Grams"
    assert ax.get_ylim()[1] >= 0.9
    assert texts_of_legend(ax) == ["LayerNorm", "Linear", "peak: norm", "peak: fc1", "forward Gram"]
    require_readable(figure)
    report(THREE[:2], [0.1, 0.2]).plot(ax)
    assert ax.get_xlim()[1] >= 3.5, "the third layer is still to be seen"


def test_reports_beside_one_another() -> None:
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    for ax, name in zip(axes.flat, ("vit", "resnet50", "names", "mlp of 300 layers"), strict=True):
        report(NETWORKS[name]).plot(ax, null=0.1)
    require_readable(figure)


def test_matplotlib_is_imported_for_a_plot_alone() -> None:
    code = "import sys, ahkernels; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "value"), [("n", 7), ("outputs", "trace"), ("centering", "per_output")])
def test_null_level_of_another_measurement(name: str, value: Any) -> None:
    one = report(THREE, VALUES)
    other = dataclasses.replace(one, **{name: value})
    with pytest.raises(
        ValueError, match=rf"^null: expected a report with {name} = .*, as in the picture, got {value}$"
    ):
        one.plot(null=other)
