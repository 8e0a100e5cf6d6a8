"""Layerwise alignment along a training run: measure, keep, log, save, resume and plot."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import numbers
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ahkernels.capture import Inputs
from ahkernels.capture.guard import require_module
from ahkernels.centering import Centering, Centerings
from ahkernels.certificate import Certificate
from ahkernels.distributed.group import Group, everywhere
from ahkernels.layerwise import AlignmentOptions, alignment_reports
from ahkernels.optional_import import optional_import
from ahkernels.plotting import plot_history
from ahkernels.report import AlignmentReport
from ahkernels.statistics.degenerate_warning import OneWarning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame
    from typing_extensions import Unpack

    from ahkernels.capture import CaptureKeywords
    from ahkernels.plotting.null_level import NullLevel


class ScalarWriter(Protocol):
    """Anything that logs scalars as TensorBoard's SummaryWriter does."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> object:
        """Log one value."""


@dataclass(frozen=True)
class Measurement:
    """One row of a tracker's history.

    Attributes:
        step: Training step.
        metrics: What was kept beside the alignments.
        reports: {centering: report}, in the order in which they were asked for.
    """

    step: int
    metrics: dict[str, float]
    reports: dict[Centering, AlignmentReport]

    @property
    def report(self) -> AlignmentReport:
        """The only report, or the first of several."""
        return next(iter(self.reports.values()))


class AlignmentTracker:
    """Measures a model's layerwise alignment on fixed probe data as the model trains.

    The model is measured in eval mode by a twin of it, so that the model itself stays as it is: modes, parameters,
    gradients, hooks, buffers and random-number state. Training goes on exactly as it would have without the tracker.

    Args:
        model: The network in training; kept by reference.
        x: What the model takes for n probe samples: a tensor, or a tuple, dict or dataclass of tensors [n, ...]; kept
            by reference.
        y: Class indices [n], or targets [n, o]; kept by reference.
        centering: "global", "per_output", or a sequence of them to keep both.
        statistics: What to measure beside the alignment; see `ahkernels.layerwise_alignment`.
        products: See `layerwise_alignment`.
        tolerance: See `layerwise_alignment`.
        writer: An object with `add_scalar(tag, value, step)`, such as TensorBoard's SummaryWriter. Every update logs
            "{tag}/{layer}", with several centerings "{tag}/{centering}/{layer}", and the metrics under their own names.
        tag: Prefix of the layers' tags in the writer, and of their columns in tables.
        **options: `layers`, `outputs`, `output`, `precision`, `memory_budget`, `certify`, `progress` and
            `process_group`; see `CaptureOptions`. With a process group, x and y are the samples of this process, all
            processes update together and keep the same history, and rank 0 alone logs and writes files.

    Attributes:
        options: What to measure, and how.
        history: One `Measurement` (step, metrics, reports) for each update, in order.

    Raises:
        TypeError: If `writer` has no `add_scalar`, or an option has another type.
        ValueError: For another `centering`, `precision`, `statistics`, number of `products` or `tolerance`.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> tracker = ah.AlignmentTracker(model, torch.randn(20, 4), torch.arange(20) % 3)
        >>> for step in range(3):
        ...     measurement = tracker.update(step, loss=1.0)  # after a step of training
        >>> tracker.steps, tracker.layers, tracker.cka.shape
        ([0, 1, 2], ['0', '2'], torch.Size([3, 2]))
        >>> measurement.report.peak in tracker.layers
        True
    """

    def __init__(
        self,
        model: torch.nn.Module,
        x: Inputs,
        y: Tensor,
        *,
        centering: Centering | Centerings = "global",
        statistics: Sequence[str] = (),
        products: int | None = None,
        tolerance: float | None = None,
        writer: ScalarWriter | None = None,
        tag: str = "alignment",
        **options: Unpack[CaptureKeywords],
    ) -> None:
        if writer is not None and not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(
                f"writer: expected an object with add_scalar(tag, value, step), got {type(writer).__name__}"
            )
        require_module(model)
        self.model, self.x, self.y = model, x, y
        self.options = AlignmentOptions.of(centering, statistics, products, tolerance, options)
        self.writer, self.tag = writer, tag
        self.history: list[Measurement] = []
        self._one_warning = OneWarning()
        group = self.options.capture.process_group
        self._writes = group is None or Group.of(group).rank == 0

    def update(self, step: int, **metrics: float) -> Measurement:
        """Measures the model now and adds the result to the history.

        Layers whose alignment is not defined are named in a `DegenerateKernelWarning`, once in the life of the tracker.

        Args:
            step: The training step, greater than that of the update before.
            metrics: Real numbers (or 0-d tensors) to keep beside the alignments, such as `loss=`.

        Returns:
            The new measurement, with its report.

        Raises:
            TypeError: If `step` is not an integer or a metric is not a real number.
            ValueError: If `step` does not increase, or the model's layers are not those of the history.
            NonFiniteError: If there is nan or inf in a layer's activations or gradients.
        """
        step, values = everywhere(
            self.options.capture.process_group,
            lambda: (self._next_step(step), {name: _real(name, value) for name, value in metrics.items()}),
        )
        reports = alignment_reports(self.model, self.x, self.y, self.options, self._one_warning, evaluating=True)
        row = Measurement(step, values, reports)
        if self.history and row.report.layers != self.layers:
            raise ValueError(f"model: expected the layers of the history {self.layers}, got {row.report.layers}")
        if self.history and list(reports) != list(self.history[0].reports):
            raise ValueError(
                f"centering: expected that of the history {list(self.history[0].reports)}, got {list(reports)}"
            )
        try:
            self._log(row)
        except Exception:
            self.history.append(row)  # what was measured is not lost
            raise
        self.history.append(row)  # last of all, so that an interrupted update leaves the history as it was
        return row

    def _log(self, row: Measurement) -> None:
        if self.writer is None or not self._writes:
            return
        for centering, report in row.reports.items():
            for layer, value in report.items():
                self.writer.add_scalar(f"{self._prefix(self.tag, centering)}/{layer}", value, row.step)
        for name, value in row.metrics.items():
            self.writer.add_scalar(name, value, row.step)

    def _prefix(self, name: str, centering: Centering) -> str:
        """Prefix of a layer's tag or column; the centering is in it where there are several."""
        return name if len(self.options.centerings) == 1 else f"{name}/{centering}"

    def _next_step(self, step: int) -> int:
        try:
            step = operator.index(step)
        except TypeError:
            raise TypeError(f"step: expected an integer, got {type(step).__name__}") from None
        if self.history and step <= self.history[-1].step:
            raise ValueError(f"step: expected more than {self.history[-1].step}, the last one, got {step}")
        return step

    # ---- what was measured

    @property
    def steps(self) -> list[int]:
        """The step of each update, strictly increasing."""
        return [row.step for row in self.history]

    @property
    def layers(self) -> list[str]:
        """Names of the measured layers in forward order; empty before the first update."""
        return list(self.history[0].report.layers) if self.history else []

    @property
    def cka(self) -> Tensor:
        """[steps, L] float64: alignment of every layer at every step, with the first centering if there are several."""
        if not self.history:
            return torch.empty(0, 0, dtype=torch.float64)
        return torch.stack([row.report.cka for row in self.history])

    # ---- tables

    def to_dataframe(self) -> DataFrame:
        """A pandas DataFrame with the columns of `to_csv`.

        Raises:
            ImportError: If pandas is not installed.
        """
        pandas = optional_import("pandas", "to_dataframe()", "pip install pandas")
        frame: DataFrame = pandas.DataFrame(list(self._rows()), columns=self._columns())
        return frame

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes one line for each step: the step, its metrics and every statistic of every layer.

        The columns of layers are "{tag}/{layer}" for the alignment and "{statistic}/{layer}" for all else, such as
        "trace/fc1"; with several centerings, the centering stands before the layer. Numbers read back exactly; a metric
        that a step did not have is empty. The file is replaced whole or not at all.

        Raises:
            FileNotFoundError: If the folder does not exist.
        """
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, self._columns(), lineterminator="\n")
        table.writeheader()
        table.writerows(self._rows())
        self._write(path, text.getvalue())

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes a list of {"step", "metrics", "reports"} with each report in full, see `AlignmentReport.to_dict`.

        Values that are not finite become null. The file is replaced whole or not at all.

        Raises:
            FileNotFoundError: If the folder does not exist.
        """
        rows = [
            {
                "step": row.step,
                "metrics": {name: v if math.isfinite(v) else None for name, v in row.metrics.items()},
                "reports": {centering: report.to_dict() for centering, report in row.reports.items()},
            }
            for row in self.history
        ]
        self._write(path, json.dumps(rows, indent=1, allow_nan=False) + "\n")

    def _write(self, path: str | os.PathLike[str], text: str) -> None:
        if self._writes:
            _replace(path, text)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """One {column: value} per step."""
        for row in self.history:
            cells: dict[str, Any] = {"step": row.step, **row.metrics}
            for centering, report in row.reports.items():
                for field, values in report.statistics.items():
                    name = self._prefix(self.tag if field == "cka" else field, centering)
                    cells.update(zip((f"{name}/{layer}" for layer in report.layers), values.tolist(), strict=True))
            yield cells

    def _columns(self) -> list[str]:
        """Every column that some row has: step, then metrics, then alignments."""
        metrics = dict.fromkeys(name for row in self.history for name in row.metrics)
        rest = dict.fromkeys(name for row in self._rows() for name in row)
        return list({"step": None, **metrics, **rest})

    # ---- saving and resuming

    def state_dict(self) -> dict[str, Any]:
        """The history as tensors and plain types, fit for torch.save and torch.load(weights_only=True)."""
        rows = [
            {
                "step": row.step,
                "metrics": dict(row.metrics),
                "reports": {centering: _state_of(report) for centering, report in row.reports.items()},
            }
            for row in self.history
        ]
        return {"history": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the history of `state_dict`; the next update goes on from its last step.

        Raises:
            ValueError: If `state` is not such a history. The tracker then stays as it is.
        """
        try:
            history = [
                Measurement(
                    int(row["step"]),
                    dict(row["metrics"]),
                    {centering: _report_of(report) for centering, report in row["reports"].items()},
                )
                for row in state["history"]
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"state: expected what state_dict() returns, got one with {error!r}") from error
        steps = [row.step for row in history]
        if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise ValueError(f"state: expected strictly increasing steps, got {steps}")
        wanted = list(self.options.centerings)
        found = [[(key, report.centering) for key, report in row.reports.items()] for row in history]
        wrong = [[key for key, _ in row] for row in found if row != [(one, one) for one in wanted]]
        if wrong:
            raise ValueError(f"state: expected the centering of this tracker, {wanted}, got {wrong[0]}")
        if any(row.report.layers != history[0].report.layers for row in history):
            raise ValueError("state: expected the same layers at every step")
        self.history = history

    # ---- picture

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
        return plot_history(self.history, ax, null=null)


def _state_of(report: AlignmentReport) -> dict[str, Any]:
    """The fields of a report as tensors and plain types."""
    state = {field.name: getattr(report, field.name) for field in fields(report)}
    return state | {"certificate": None if report.certificate is None else report.certificate.to_dict()}


def _report_of(state: Mapping[str, Any]) -> AlignmentReport:
    """The report that `_state_of` took apart."""
    certificate = state["certificate"]
    return AlignmentReport(
        **{**state, "certificate": None if certificate is None else Certificate.from_dict(certificate)}
    )


def _real(name: str, value: object) -> float:
    got = type(value).__name__
    if isinstance(value, Tensor):
        if value.ndim == 0 and not value.is_complex():
            return float(value.detach())
        got = f"a tensor of shape {list(value.shape)} and dtype {value.dtype}"
    elif isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{name}: expected a real number or a 0-d tensor, got {got}")


def _replace(path: str | os.PathLike[str], text: str) -> None:
    """Write a file whole or, on any failure, leave what was there."""
    path = Path(path).resolve()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: expected a file in an existing folder, got {path}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
