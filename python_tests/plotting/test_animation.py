"""Animations of histories."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.animation import FuncAnimation
from PIL import Image

from ahkernels.plotting import animate_history, animation
from python_tests.plotting.reports import NAN, history, mlp, report, require_readable, resnet50, texts_of_legend

ROWS = history(mlp(3))


def test_a_gif_has_a_frame_for_each_measurement_and_stays_at_the_last(tmp_path: Path) -> None:
    animate_history(ROWS, tmp_path / "run.gif", fps=2, dpi=40)
    with Image.open(tmp_path / "run.gif") as image:
        assert image.size == (400, 176) and image.n_frames == len(ROWS)
        durations, frames = [], []
        for frame in range(image.n_frames):
            image.seek(frame)
            durations.append(image.info["duration"])
            frames.append(np.asarray(image.convert("RGB")))
    assert durations == [500, 500, 500, 2000]
    assert all((one != other).any() for one, other in itertools.pairwise(frames))
    assert list(tmp_path.iterdir()) == [tmp_path / "run.gif"]
    assert not pyplot.get_fignums()


def test_a_page_has_all_frames_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    animate_history(history(mlp(3), metrics=False), tmp_path / "run.html", dpi=40, progress=True)
    text = (tmp_path / "run.html").read_text()
    assert len(re.findall(r"frames\[\d+\] = \"data:image/png;base64", text)) == len(ROWS)
    assert list(tmp_path.iterdir()) == [tmp_path / "run.html"]
    assert "frames" in capsys.readouterr().err


def test_axes_stay_where_they_are() -> None:
    rows = history(resnet50())
    values = rows[1].report.cka
    values[3:9] = NAN
    rows[1].reports["global"] = report(resnet50(), values.tolist())
    picture = animation._Picture(rows, dpi=50)
    require_readable(picture.figure)
    ax = picture.figure.axes[0]
    seen = []
    for frame, row in enumerate(rows):
        picture.show(frame)
        picture.figure.draw_without_rendering()
        seen.append([(one.get_position().bounds, one.get_xlim(), one.get_ylim()) for one in picture.figure.axes])
        assert ax.get_legend().get_title().get_text() == f"step {row.step}, peak: {row.report.peak}"
        assert ax.get_ylim()[0] <= 0 and ax.get_ylim()[1] > float(rows[-1].report.cka.max())
    assert all(one == seen[0] for one in seen)
    assert texts_of_legend(ax)[-3:] == ["peak", "not defined (nan)", "step 0"]


def test_each_frame_shows_its_measurement() -> None:
    picture = animation._Picture(ROWS, dpi=50)
    left, right = picture.figure.axes
    picture.show(2)
    points = np.concatenate([one.get_offsets() for one in left.collections if len(one.get_offsets()) == 3])
    assert np.allclose(points, list(enumerate(ROWS[2].report.cka.tolist(), 1)))
    dots = [line.get_xydata().tolist() for line in right.lines if line.get_marker() == "o"]
    assert dots == [[[10, ROWS[2].metrics["loss"]]], [[10, ROWS[2].metrics["Val_Loss"]]]]


def test_nothing_but_nan(tmp_path: Path) -> None:
    (row,) = history(mlp(3), steps=[5])
    row.reports["global"] = report(mlp(3), [NAN] * 3)
    animate_history([row], tmp_path / "run.gif", fps=1, dpi=30)
    assert (tmp_path / "run.gif").stat().st_size


def test_a_file_stays_as_it_was_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.gif"
    path.write_text("before")

    def full(self: Any, file: Path, *_: object, **__: object) -> None:
        file.write_text("a part")
        self._draw_was_started = True  # as it is after drawing, or matplotlib warns of an animation that was not drawn
        raise OSError("no space left on device")

    monkeypatch.setattr(FuncAnimation, "save", full)
    with pytest.raises(OSError, match="no space left"):
        animate_history(ROWS, path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("rows", "path", "options", "error", "message"),
    [
        ([], "a.gif", {}, ValueError, r"history: expected at least one update\(\) before animate\(\), got none"),
        (ROWS, "a.mp4", {}, ValueError, r"path: expected a file that ends with .gif or .html, got 'a.mp4'"),
        (ROWS, "missing/a.gif", {}, FileNotFoundError, "path: expected a file in an existing folder, got"),
        (ROWS, "a.gif", {"fps": 0}, ValueError, "fps: expected a positive number, got 0"),
        (ROWS, "a.gif", {"dpi": -1}, ValueError, "dpi: expected a positive number, got -1"),
    ],
)
def test_mistakes(rows: Any, path: str, options: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=f"^{message}"):
        animate_history(rows, tmp_path / path, **options)
    assert not list(tmp_path.iterdir())
