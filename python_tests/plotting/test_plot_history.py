"""Pictures of histories."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from ahkernels.plotting import plot_history
from python_tests.plotting.reports import (
    NAN,
    SOME,
    history,
    mlp,
    report,
    require_readable,
    resnet50,
    texts_of_legend,
    vit,
    x_labels,
)


def others(ax: Axes, label: str) -> list[Axes]:
    return [one for one in ax.figure.axes if label in (one.get_ylabel(), one.get_title("right"))]


@pytest.mark.parametrize("layers", SOME.values(), ids=SOME)
def test_everything_can_be_read(layers: list[tuple[str, str]]) -> None:
    left, _ = plot_history(history(layers), null=0.2)
    require_readable(left.figure)


def test_layers_along_training_beside_the_last_step() -> None:
    rows = history(mlp(3))
    left, right = plot_history(rows)
    assert [list(line.get_xdata()) for line in left.lines] == [[0, 1, 10, 100]] * 3
    assert np.allclose([line.get_ydata() for line in left.lines], np.array([row.report.cka for row in rows]).T)
    assert left.get_xscale() == "symlog", "step 0 shows"
    assert right.get_legend().get_title().get_text() == "step 100"
    assert x_labels(right) == ["0", "2", "4"]


def test_losses_are_on_an_axis_of_their_own() -> None:
    left, _ = plot_history(history(mlp(3)))
    (loss,) = others(left, "loss")
    assert [line.get_label() for line in loss.lines] == texts_of_legend(left) == ["loss", "Val_Loss"]
    assert len({line.get_linestyle() for line in loss.lines}) == 2
    assert not others(plot_history(history(mlp(3), metrics=False))[0], "loss")


def test_a_loss_that_is_missing_at_a_step() -> None:
    rows = history(mlp(3))
    del rows[1].metrics["loss"]
    (loss,) = others(plot_history(rows)[0], "loss")
    assert np.array_equal(loss.lines[0].get_ydata(), [2, NAN, 2 / 3, 0.5], equal_nan=True)


def test_lines_points_and_bar_have_the_same_colours() -> None:
    layers = vit()
    left, right = plot_history(history(layers))
    (bar,) = others(left, "layer")
    image = bar.collections[-1]
    of_bar = image.cmap(image.norm(np.arange(1, len(layers) + 1)))
    assert np.allclose(of_bar, [to_rgba(line.get_color()) for line in left.lines])
    points = {
        float(place[0]): colour
        for one in right.collections
        if hasattr(one, "get_sizes") and len(one.get_sizes())
        for place, colour in zip(one.get_offsets(), one.get_facecolor(), strict=True)
    }
    assert np.allclose(of_bar, [points[layer] for layer in range(1, len(layers) + 1)])


@pytest.mark.parametrize("layers", [vit(), resnet50(), mlp(3)])
def test_the_bar_is_labelled_at_the_layers_as_the_axis_is(layers: list[tuple[str, str]]) -> None:
    left, right = plot_history(history(layers))
    (bar,) = others(left, "layer")
    assert bar.get_ylim() == (0.5, len(layers) + 0.5)
    for minor in (False, True):
        labels = [label.get_text() for label in bar.get_yticklabels(minor=minor)]
        on_axis = dict(zip(right.get_xticks(minor=minor), x_labels(right, minor=minor), strict=True))
        on_bar = dict(zip(bar.get_yticks(minor=minor), labels, strict=True))
        assert on_bar.items() <= on_axis.items() and len(on_bar) >= len(on_axis) / 2


def test_one_step_is_visible() -> None:
    left, right = plot_history(history(mlp(3), steps=[0]))
    assert {line.get_marker() for line in left.lines} == {"o"}
    assert left.get_xticks().tolist() == [0]
    assert right.get_legend().get_title().get_text() == "step 0"
    require_readable(left.figure)


def test_nothing_but_nan() -> None:
    rows = [row for row in history(mlp(3)) if row.reports.update({"global": report(mlp(3), [NAN] * 3)}) is None]
    require_readable(plot_history(rows)[0].figure)


def test_on_given_axes_twice() -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    assert plot_history(history(mlp(3)), axes) is axes
    pair = tuple(axes)
    assert plot_history(history(mlp(3)), pair) is pair
    assert "CKA" in axes[1].get_ylabel(), "these do not share their y-axis"
    figure.draw_without_rendering()


def test_needs_a_history_and_two_axes() -> None:
    with pytest.raises(ValueError, match=r"history: expected at least one update\(\)"):
        plot_history([])
    ax = pyplot.subplots()[1]
    with pytest.raises(ValueError, match="ax: expected two axes, got 1"):
        plot_history(history(mlp(3)), [ax])
    with pytest.raises(ValueError, match="ax: expected two axes, got Axes"):
        plot_history(history(mlp(3)), ax)
    with pytest.raises(TypeError, match="ax: expected the axes of a matplotlib figure, got str"):
        plot_history(history(mlp(3)), [ax, "right"])
    assert not ax.has_data()
