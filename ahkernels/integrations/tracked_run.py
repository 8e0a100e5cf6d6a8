"""What the callbacks have in common: the tracker of a run that a framework drives, and that may be resumed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ahkernels.capture import Inputs
from ahkernels.capture.batch import Batch, is_empty
from ahkernels.capture.wrappers import without_wrappers
from ahkernels.integrations.schedule import Schedule
from ahkernels.tracker import AlignmentTracker, ScalarWriter


class TrackedRun:
    """A training run with a tracker that measures at the steps of a schedule.

    Args:
        x: What the model, or its part `module`, takes for n probe samples; see `AlignmentTracker`. It may be on any
            device.
        y: Class indices [n], or targets [n, o].
        every: Optimiser steps from one measurement to the next.
        steps: Optimiser steps to measure at, instead of `every`.
        module: The name of the part of the model that is measured; "" for all of it.
        metrics: Names of what the framework logs, to be kept beside the alignments.
        options: Those of `AlignmentTracker`. Here `process_group` may also be "world", for the group of all processes,
            which frameworks make only when the run begins.

    Attributes:
        tracker: The tracker of the run. Before the run begins it has no model, and may be given a history.

    Raises:
        TypeError: If an argument has another type, or an option is unknown.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        x: Inputs,
        y: Tensor,
        every: int | None,
        steps: Sequence[int] | None,
        module: str,
        metrics: Sequence[str],
        options: Mapping[str, Any],
    ) -> None:
        self._schedule = Schedule(every, steps)
        if not isinstance(module, str):
            raise TypeError(f"module: expected the name of a part of the model, got {type(module).__name__}")
        if isinstance(metrics, str) or not all(isinstance(one, str) for one in metrics):
            raise TypeError(f"metrics: expected a sequence of names, got {metrics!r}; write ['val_loss'], say")
        self._x, self._y, self._module, self.metrics = _on(x, None), y, module, tuple(metrics)
        self._options = dict(options)
        self._in_world = self._options.get("process_group") == "world"
        if self._in_world:
            self._options["process_group"] = None  # there is none yet
        self.tracker = AlignmentTracker(nn.Identity(), self._x, y, **self._options)  # which looks at the options
        self._row = _Row(None)

    def begin(self, model: nn.Module, step: int, *, writes: bool) -> None:
        """The run begins, or goes on.

        A history that ends before this step goes on; one that ends after it belongs to another run, and a new one
        begins.

        Args:
            model: The network.
            step: Optimiser steps so far.
            writes: Whether this process writes to `writer`.

        Raises:
            ValueError: If the model has no part `module`.
        """
        part = _part(model, self._module)
        device = next((one.device for one in part.parameters()), None)
        options = dict(self._options)
        if self._in_world:
            options["process_group"] = dist.group.WORLD if dist.is_initialized() else None
        self._row = _Row(options.get("writer") if writes else None)
        tracker = AlignmentTracker(part, _on(self._x, device), self._y.to(device), **{**options, "writer": self._row})
        if self._last <= step:
            tracker.load_state_dict(self.tracker.state_dict())
        self.tracker = tracker

    def is_due(self, step: int) -> bool:
        """Whether the model has to be measured after so many optimiser steps."""
        return self._schedule.is_due(step, self._last)

    def measure(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Measures the model now.

        Returns:
            What the loggers of the framework are to be told: {tag: alignment}.
        """
        self._row.values = {}
        measurement = self.tracker.update(step, **metrics)
        return {tag: value for tag, value in self._row.values.items() if tag not in measurement.metrics}

    @property
    def _last(self) -> int:
        return self.tracker.steps[-1] if self.tracker.steps else -1


class _Row:
    """Keeps what the tracker logs, for loggers that take all values of a step at once, and passes it on.

    Args:
        writer: The writer that the user has given.
    """

    def __init__(self, writer: ScalarWriter | None) -> None:
        self._writer = writer
        self.values: dict[str, float] = {}

    def add_scalar(self, tag: str, value: float, step: int, /) -> None:
        self.values[tag] = value
        if self._writer is not None:
            self._writer.add_scalar(tag, value, step)


def _part(model: nn.Module, name: str) -> nn.Module:
    if not name:
        return model
    model = without_wrappers(model)
    known = [path for path, _ in model.named_modules() if path]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise ValueError(
            f"module: expected the name of a part of {type(model).__name__}, got {name!r}; nearest: {near}"
        )
    return model.get_submodule(name)


def _on(x: Inputs, device: torch.device | None) -> Inputs:
    """The samples on a device; None for the one that they are on."""
    if is_empty(x):  # of a process without samples
        return x
    batch = Batch(x)
    return batch.with_tensors([one.to(device) for one in batch.tensors]).structure
