"""Layerwise alignment along a training run: what was measured at each step, as tables, files and pictures."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from ahkernels.centering import Centering
from ahkernels.files.csv_format import table
from ahkernels.files.numbers import from_json_number, to_json_number
from ahkernels.files.parsing import parsed
from ahkernels.files.results import read_result, write_result
from ahkernels.optional_import import optional_import
from ahkernels.plotting import animate_history, plot_history
from ahkernels.report import AlignmentReport
from ahkernels.table import Column, html_table, text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame
    from xarray import Dataset

    from ahkernels.plotting.null_level import NullLevel

_MOST_ROWS = 12  # of a printed history
_FIRST_ROWS = 3


@dataclass(frozen=True)
class Measurement:
    """One row of a history.

    Attributes:
        step: Training step.
        metrics: What was kept beside the alignments.
        reports: {centering: report}, in the order in which they were asked for.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> tracker = ah.AlignmentTracker(model, torch.randn(20, 4), torch.arange(20) % 3)
        >>> measurement = tracker.update(0, loss=1.0)
        >>> measurement.step, measurement.metrics, measurement.report.layers
        (0, {'loss': 1.0}, ['0', '2'])
    """

    step: int
    metrics: dict[str, float]
    reports: dict[Centering, AlignmentReport]

    @property
    def report(self) -> AlignmentReport:
        """The only report, or the first of several."""
        return next(iter(self.reports.values()))

    def to_dict(self) -> dict[str, Any]:
        """The measurement as plain Python, ready for JSON; see `AlignmentReport.to_dict`."""
        return {
            "step": self.step,
            "metrics": {name: to_json_number(value) for name, value in self.metrics.items()},
            "reports": {centering: report.to_dict() for centering, report in self.reports.items()},
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Measurement:
        """The measurement that `to_dict` gave.

        Raises:
            ValueError: For anything else.
        """
        return parsed(lambda: cls._of(state), "state: expected what to_dict() of a measurement gives")

    @classmethod
    def _of(cls, state: Mapping[str, Any]) -> Measurement:
        metrics = {str(name): from_json_number(value) for name, value in state["metrics"].items()}
        reports = {key: AlignmentReport._of(one) for key, one in state["reports"].items()}
        if not reports or any(key != report.centering for key, report in reports.items()):
            raise ValueError(f"reports: expected one for each centering, got {list(reports)}")
        return cls(operator.index(state["step"]), metrics, {one.centering: one for one in reports.values()})


class AlignmentHistory(Sequence[Measurement]):
    """The measurements of a run in order: step, metrics and reports of each.

    Args:
        measurements: The measurements, with increasing steps, the same layers and the same centerings.
        settings: What they were measured with, by the name of the argument, such as "layers", and digests of "x" and
            "y". A tracker takes over no history with others. Nothing where that is not known.

    Raises:
        TypeError: If there is anything but measurements, or `settings` is no mapping.
        ValueError: If a step does not increase, or a measurement has other layers or centerings than the first.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> tracker = ah.AlignmentTracker(model, torch.randn(20, 4), torch.arange(20) % 3)
        >>> for step in range(3):
        ...     measurement = tracker.update(step, loss=1.0)
        >>> history = tracker.history
        >>> len(history), history.steps, history.layers, history.cka.shape
        (3, [0, 1, 2], ['0', '2'], torch.Size([3, 2]))
        >>> history.save("run.json")
        >>> ah.AlignmentHistory.load("run.json").cka.equal(history.cka)
        True
    """

    def __init__(self, measurements: Iterable[Measurement] = (), settings: Mapping[str, str] | None = None) -> None:
        if settings is not None and not isinstance(settings, Mapping):
            raise TypeError(f"settings: expected a mapping of texts, got {type(settings).__name__}")
        self.settings = dict(settings or {})
        self._measurements: list[Measurement] = []
        for one in measurements:
            self.append(one)

    def append(self, measurement: Measurement) -> None:
        """Adds a measurement at the end.

        Raises:
            ValueError: See the class. The history then stays as it is.
        """
        if not isinstance(measurement, Measurement):
            raise TypeError(f"measurement: expected a Measurement, got {type(measurement).__name__}")
        first = self[0] if self else measurement
        layers, centerings = first.report.layers, list(first.reports)
        if self and measurement.step <= self[-1].step:
            raise ValueError(f"step: expected more than {self[-1].step}, the last one, got {measurement.step}")
        for report in measurement.reports.values():
            if report.layers != layers:
                raise ValueError(f"model: expected the layers of the history {layers}, got {report.layers}")
        if list(measurement.reports) != centerings:
            raise ValueError(f"centering: expected that of the history {centerings}, got {list(measurement.reports)}")
        self._measurements.append(measurement)

    # ---- a sequence of measurements

    @overload
    def __getitem__(self, index: int) -> Measurement: ...

    @overload
    def __getitem__(self, index: slice) -> AlignmentHistory: ...

    def __getitem__(self, index: int | slice) -> Measurement | AlignmentHistory:
        if isinstance(index, slice):
            return AlignmentHistory(self._measurements[index], self.settings)
        return self._measurements[index]

    def __len__(self) -> int:
        return len(self._measurements)

    @property
    def steps(self) -> list[int]:
        """The step of each measurement, strictly increasing."""
        return [one.step for one in self]

    @property
    def layers(self) -> list[str]:
        """Names of the measured layers in forward order; empty where nothing has been measured."""
        return list(self[0].report.layers) if self else []

    @property
    def centerings(self) -> list[Centering]:
        """The centerings of the reports at each step."""
        return list(self[0].reports) if self else []

    @property
    def cka(self) -> Tensor:
        """[steps, L] float64: alignment of every layer at every step, with the first centering if there are several."""
        if not self:
            return torch.empty(0, 0, dtype=torch.float64)
        return torch.stack([one.report.cka for one in self])

    # ---- text

    def __str__(self) -> str:
        """A table with the metrics, and the layer with the greatest alignment, at the first and the last steps."""
        title, columns = self._title(), self._cells()
        return f"{title}\n{text_table(columns, rule=True)}" if self else title

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same table for notebooks."""
        return html_table(self._cells(), self._title())

    def _title(self) -> str:
        if not self:
            return "Alignment history without a measurement"
        centering = " and ".join(self.centerings)
        count = f"{len(self)} measurement{'s' if len(self) > 1 else ''}"
        return f"Alignment history, {count} of {len(self.layers)} layers, centering = {centering}"

    def _cells(self) -> list[Column]:
        """The columns, with a line of dots in place of the middle of a long history."""
        metrics = dict.fromkeys(name for one in self for name in one.metrics)
        columns = {
            "step": [str(one.step) for one in self],
            **{name: [f"{one.metrics[name]:.4g}" if name in one.metrics else "" for one in self] for name in metrics},
            "peak": [one.report.peak or "" for one in self],
            "alignment": [_shown(one.report) for one in self],
        }
        if len(self) > _MOST_ROWS:
            last = _FIRST_ROWS - _MOST_ROWS
            columns = {name: [*cells[:_FIRST_ROWS], "...", *cells[last:]] for name, cells in columns.items()}
        return [Column(name, cells, "left" if name == "peak" else "right") for name, cells in columns.items()]

    # ---- conversion and files

    def to_dict(self) -> dict[str, Any]:
        """The history as plain Python, ready for JSON; see `AlignmentReport.to_dict`."""
        return {"settings": self.settings, "measurements": [one.to_dict() for one in self]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> AlignmentHistory:
        """The history that `to_dict` gave.

        Raises:
            ValueError: For anything else.
        """
        return parsed(lambda: cls._of(state), "state: expected what to_dict() of a history gives")

    @classmethod
    def _of(cls, state: Mapping[str, Any]) -> AlignmentHistory:
        settings = {str(name): str(value) for name, value in state.get("settings", {}).items()}
        return cls([Measurement._of(one) for one in state["measurements"]], settings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the history in the format of the file's ending: .json, .csv or .npz.

        Any of them reads back exactly with `load`; a CSV file alone lacks the settings. It has a line for each step,
        centering and layer, with a column for each statistic; an npz file has arrays [steps, L]. Each carries a digest
        of its content. The file is replaced whole or not at all.

        Args:
            path: The file.

        Raises:
            ValueError: For another ending.
            FileNotFoundError: If the folder does not exist.
        """
        write_result(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AlignmentHistory:
        """Reads a file that `save` wrote.

        Args:
            path: The file.

        Raises:
            ValueError: If it is no such file, or has changed since it was written.
            FileNotFoundError: If there is no such file.
        """
        content = read_result(path)
        return parsed(lambda: cls._of(content), f"path: expected a history that save() wrote in {str(path)!r}")

    def to_dataframe(self) -> DataFrame:
        """A pandas DataFrame with the lines and columns of a CSV file that `save` writes, but for its digest.

        `history.to_dataframe().pivot(index="step", columns="layer", values="cka")` has a column for each layer.

        Raises:
            ImportError: If pandas is not installed.
        """
        pandas = optional_import("pandas", "to_dataframe()", "pip install pandas")
        columns, lines = table(self.to_dict())
        frame: DataFrame = pandas.DataFrame(lines, columns=columns)
        return frame

    def to_xarray(self) -> Dataset:
        """An xarray Dataset: "value" over centering, step, layer and statistic, "metrics" over step and metric.

        Raises:
            ImportError: If xarray is not installed.
            ValueError: If there is no measurement.
        """
        xarray = optional_import("xarray", "to_xarray()", "pip install xarray")
        if not self:
            raise ValueError("history: expected at least one measurement, got none")
        statistics = list(dict.fromkeys(name for one in self for name in one.report.statistics))
        missing = torch.full((len(self.layers),), math.nan, dtype=torch.float64)
        values = torch.stack(
            [
                torch.stack(
                    [
                        torch.stack([one.reports[centering].statistics.get(name, missing) for name in statistics], 1)
                        for one in self
                    ]
                )
                for centering in self.centerings
            ]
        )
        names = list(dict.fromkeys(name for one in self for name in one.metrics))
        metrics = [[one.metrics.get(name, math.nan) for name in names] for one in self]
        found: Dataset = xarray.Dataset(
            {
                "value": (("centering", "step", "layer", "statistic"), values.numpy()),
                "metrics": (("step", "metric"), torch.tensor(metrics, dtype=torch.float64).numpy()),
            },
            {
                "centering": self.centerings,
                "step": self.steps,
                "layer": self.layers,
                "statistic": statistics,
                "metric": names,
            },
        )
        return found

    # ---- pictures

    def plot(self, ax: Sequence[Axes] | None = None, *, null: NullLevel | None = None) -> Sequence[Axes]:
        """Draws the run as in figures 2 and 7 of the paper.

        On the left is the alignment of each layer against the step, coloured by depth, with the metrics that have
        "loss" in their name on an axis of their own. On the right is the alignment by layer at the last step, as
        `AlignmentReport.plot` draws it, but in the colours of the left. If there are several centerings, the first is
        drawn.

        Args:
            ax: Two matplotlib axes to draw on; by default those of a new figure.
            null: The alignment by chance, on the right; see `AlignmentReport.plot`.

        Returns:
            The two axes.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If there is nothing to plot yet, or `ax` are not two, or for a null level of other layers.
        """
        return plot_history(self, ax, null=null)

    def animate(self, path: str | os.PathLike[str], *, fps: int = 5, dpi: float = 100, progress: bool = False) -> None:
        """Writes an animation of the alignment by layer along training, a frame for each measurement.

        Beside it are the metrics that have "loss" in their name, if there are some. If there are several centerings,
        the first is drawn. The file is replaced whole or not at all.

        Args:
            path: The file, which ends with .gif, or with .html for a page with controls.
            fps: Frames per second.
            dpi: Pixels per inch, of 10 x 4.4 inches with losses and 6.4 x 4.4 without.
            progress: Whether to show a progress bar on stderr.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If there is nothing to draw yet, `path` ends otherwise, or `fps` or `dpi` is not positive.
            FileNotFoundError: If the folder does not exist.
        """
        animate_history(self, path, fps=fps, dpi=dpi, progress=progress)


def _shown(report: AlignmentReport) -> str:
    """The alignment at the peak of a report."""
    return "nan" if report.peak is None else f"{report[report.peak]:.4f}"
