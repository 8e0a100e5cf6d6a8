"""Measures a model as it trains, and logs what it measures."""

from __future__ import annotations

import functools
import numbers
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ahkernels.capture import Inputs
from ahkernels.capture.batch import Batch, is_empty
from ahkernels.capture.guard import require_module, version_of
from ahkernels.centering import Centering, Centerings
from ahkernels.distributed.group import Group, everywhere
from ahkernels.history import AlignmentHistory, Measurement
from ahkernels.layerwise import AlignmentOptions, alignment_reports
from ahkernels.outputs import require_labels
from ahkernels.settings import require_options, require_settings, settings_of, structure_of
from ahkernels.statistics.degenerate_warning import OneWarning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from typing_extensions import Unpack

    from ahkernels.capture import CaptureKeywords
    from ahkernels.plotting.null_level import NullLevel


class ScalarWriter(Protocol):
    """Anything that logs scalars as TensorBoard's SummaryWriter does.

    Example:
        >>> import torch, ahkernels as ah
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(step, tag)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> tracker = ah.AlignmentTracker(model, torch.randn(20, 4), torch.arange(20) % 3, writer=Printer())
        >>> measurement = tracker.update(0)
        0 alignment/0
        0 alignment/2
    """

    def add_scalar(self, tag: str, value: float, step: int, /) -> object:
        """Log one value."""


class AlignmentTracker:
    """Measures a model's layerwise alignment on fixed probe data as the model trains.

    The model is measured in eval mode by a twin of it, so that the model itself stays as it is: modes, parameters,
    gradients, hooks, buffers and random-number state. Training goes on exactly as it would have without the tracker.

    Args:
        model: The network in training; kept by reference.
        x: What the model takes for n probe samples: a tensor, or a tuple, dict or dataclass of tensors [n, ...]; kept
            by reference, and not to be written to.
        y: Class indices [n], or targets [n, o]; kept by reference.
        centering: "global", "per_output", or a sequence of them to keep both.
        statistics: What to measure beside the alignment; see `ahkernels.layerwise_alignment`.
        products: See `layerwise_alignment`.
        tolerance: See `layerwise_alignment`.
        writer: An object with `add_scalar(tag, value, step)`, such as TensorBoard's SummaryWriter. Every update logs
            "{tag}/{layer}", with several centerings "{tag}/{centering}/{layer}", and the metrics under their own names.
        tag: Prefix of the layers' tags in the writer.
        **options: `layers`, `outputs`, `output`, `precision`, `memory_budget`, `certify`, `progress` and
            `process_group`; see `CaptureOptions`. With a process group, x and y are the samples of this process, all
            processes update together and keep the same history, and rank 0 alone logs and writes files.

    Attributes:
        options: What to measure, and how.
        history: An `AlignmentHistory`, with one `Measurement` (step, metrics, reports) for each update.

    Raises:
        TypeError: If `writer` has no `add_scalar`, x has anything but tensors and constants, y is no tensor, or an
            option has another type.
        ValueError: If tensors of x differ in their numbers of samples, or for another `centering`, `precision`,
            `statistics`, number of `products` or `tolerance`.

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
        require_labels(y)
        if not is_empty(x):  # which a rank may have no sample of
            Batch(x)
        self.model, self.x, self.y = model, x, y
        self.options = AlignmentOptions.of(centering, statistics, products, tolerance, options)
        self.writer, self.tag = writer, tag
        self.history = AlignmentHistory()
        self._one_warning = OneWarning()
        self._versions: list[int] | None = None
        group = self.options.capture.process_group
        self._writes = group is None or Group.of(group).rank == 0

    def update(self, step: int, **metrics: float | Tensor) -> Measurement:
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
        everywhere(self.options.capture.process_group, self._require_same_probe)
        reports = alignment_reports(self.model, self.x, self.y, self.options, self._one_warning, evaluating=True)
        row = Measurement(step, values, reports)
        if not self.history:
            self.history.settings |= self._settings
        self.history.append(row)
        self._log(row)  # after that, so that what was measured is not lost
        return row

    def _log(self, row: Measurement) -> None:
        if self.writer is None or not self._writes:
            return
        for centering, report in row.reports.items():
            prefix = self.tag if len(row.reports) == 1 else f"{self.tag}/{centering}"
            for layer, value in report.items():
                self.writer.add_scalar(f"{prefix}/{layer}", value, row.step)
        for name, value in row.metrics.items():
            self.writer.add_scalar(name, value, row.step)

    def _next_step(self, step: int) -> int:
        try:
            step = operator.index(step)
        except TypeError:
            raise TypeError(f"step: expected an integer, got {type(step).__name__}") from None
        if self.history and step <= self.history[-1].step:  # before any work is done
            raise ValueError(f"step: expected more than {self.history[-1].step}, the last one, got {step}")
        return step

    # ---- what was measured

    def __len__(self) -> int:
        return len(self.history)

    def __bool__(self) -> bool:
        return True  # also before the first update

    @property
    def steps(self) -> list[int]:
        """The step of each update, strictly increasing."""
        return self.history.steps

    @property
    def layers(self) -> list[str]:
        """Names of the measured layers in forward order; empty before the first update."""
        return self.history.layers

    @property
    def cka(self) -> Tensor:
        """[steps, L] float64: alignment of every layer at every step, with the first centering if there are several."""
        return self.history.cka

    def __str__(self) -> str:
        """The history as a table."""
        return str(self.history)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.history._repr_html_()

    def plot(self, ax: Sequence[Axes] | None = None, *, null: NullLevel | None = None) -> Sequence[Axes]:
        """Draws the history; see `AlignmentHistory.plot`."""
        return self.history.plot(ax, null=null)

    def animate(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Writes an animation of the history; see `AlignmentHistory.animate`."""
        self.history.animate(path, **options)

    # ---- saving and resuming

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the history, on rank 0 alone where there is a process group; see `AlignmentHistory.save`."""
        if self._writes:
            self._with_settings().save(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Takes over the history of a file that `save` wrote; the next update goes on from its last step.

        Args:
            path: The file, .json or .npz.

        Raises:
            ValueError: If it is no such file, or was measured with other samples, labels or options. The tracker then
                stays as it is.
            FileNotFoundError: If there is no such file.
        """
        if Path(path).suffix.lower() == ".csv":
            raise ValueError(f"path: expected .json or .npz, which have all settings in them, got {str(path)!r}")
        self._take(AlignmentHistory.load(path), "path")

    def state_dict(self) -> dict[str, Any]:
        """The history as plain types, fit for torch.save and torch.load(weights_only=True)."""
        return self._with_settings().to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the history of `state_dict`; the next update goes on from its last step.

        Raises:
            ValueError: If `state` is no such history, or was measured with other samples, labels or options. The
                tracker then stays as it is.
        """
        self._take(AlignmentHistory.from_dict(state), "state")

    def _take(self, history: AlignmentHistory, argument: str) -> None:
        wanted = list(self.options.centerings)
        if history and history.centerings != wanted:
            raise ValueError(
                f"{argument}: expected a history with the centering of this tracker, {wanted}, got {history.centerings}"
            )
        if history:
            require_settings(history.settings, self._settings, argument)
            require_options(history[-1].report, self.options, argument)
        self.history = history

    def _with_settings(self) -> AlignmentHistory:
        self.history.settings |= self._settings
        return self.history

    @property
    def _settings(self) -> dict[str, str]:
        has_parameters = any(True for _ in self.model.parameters())  # unlike one that stands in for it before a run
        model = {"model": structure_of(self.model)} if has_parameters else {}
        return model | self._settings_of_probe

    @functools.cached_property
    def _settings_of_probe(self) -> dict[str, str]:
        return settings_of(self.x, self.y, self.options)

    def _require_same_probe(self) -> None:
        """Raises ValueError if samples or labels have been written to since the first measurement."""
        versions = [version_of(one) for one in (*(() if is_empty(self.x) else Batch(self.x).tensors), self.y)]
        if self._versions not in (None, versions):
            raise ValueError(
                "x, y: expected the samples of the first measurement, got ones that have been written to since; pass "
                "copies (x.clone())"
            )
        self._versions = versions


def _real(name: str, value: object) -> float:
    got = type(value).__name__
    if isinstance(value, Tensor):
        if value.ndim == 0 and not value.is_complex():
            return float(value.detach())
        got = f"a tensor of shape {list(value.shape)} and dtype {value.dtype}"
    elif isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{name}: expected a real number or a 0-d tensor, got {got}")
